"""The toolbox for tests of Runbell and of programs around it. Public; needs the extra `serve`.

    faults            kill this process at a named fault point, or watch which ones are reached
    faulty            `python -m runbell.testing.faulty`: any command, killed at a fault point
    databases         migrated SQLite files in no time, stores that fail and writers that pause
    backends          a model whose turns the test ends by hand
    embedded          the whole service but its HTTP, under a clock that the test moves
    receivers         a receiver of webhooks that misbehaves in every way
    certificates      good and bad certificates for it (needs `trustme`)
    histories         what a feed of events has to be
    postgresql        databases on a private PostgreSQL, in no time (needs `embedded-postgresql`)
    jobs_contract     what every engine for jobs has to pass (needs `pytest`)
    storage_contract  what every database driver has to pass (needs `pytest` and `hypothesis`)

Import what you need from its module; nothing here is imported by production code.
"""
