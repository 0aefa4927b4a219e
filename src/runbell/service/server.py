"""How a service process lives: from its settings to the last commit.

uvicorn runs inside our own event loop and owns neither the signals nor the socket, so that a
second instance is refused before anything is opened, and jobs end together with the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import ipaddress
import logging
import os
import resource
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from runbell.clock import Clock
from runbell.errors import ConfigurationError
from runbell.runs import RunStatus
from runbell.service import logs, retention
from runbell.service.agreed_key import agreed_vault
from runbell.service.app import App
from runbell.service.backends import Backend, Backends
from runbell.service.backends.echo import Echo
from runbell.service.backends.timing import Observer
from runbell.service.connection import Connection
from runbell.service.databases import Database, open_database
from runbell.service.delivery.dialling import Poster
from runbell.service.delivery.lanes import Deliverer
from runbell.service.executor import Executor
from runbell.service.feeds import Feeds
from runbell.service.hints import Hints
from runbell.service.jobs import Handler, JobKind
from runbell.service.live import Live
from runbell.service.metrics import Metrics
from runbell.service.operations import backlog
from runbell.service.operations.access import (
    DEFAULT_PROJECT,
    Access,
    ensure_project,
    new_key,
)
from runbell.service.operations.context import Context
from runbell.service.settings import Settings, location, mistaken_variables
from runbell.service.vault import Vault
from runbell.storage import projects

__all__ = ["build", "handlers", "run", "work"]

logger = logging.getLogger(__name__)

MIN_KEY_LENGTH = 16
"""Characters of a key that somebody chose, where other machines can try keys."""

KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that it is they who close them."""


def run(settings: Settings, say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        say: shows a line to whoever started the process.

    Raises:
        ConfigurationError: the service cannot start; says why, and what to do.
    """
    _live(settings, _serve(settings, say))


def work(settings: Settings, say: Callable[[str], None] = print) -> None:
    """Execute runs and deliver webhooks until SIGTERM or SIGINT, and take no requests.

    Args:
        say: shows a line to whoever started the process.

    Raises:
        ConfigurationError: the worker cannot start; says why, and what to do.
    """
    if settings.database.startswith("sqlite:"):
        raise ConfigurationError(
            f"{location(settings.database)} has one process, which serves too: a worker needs a "
            "database for several, such as --database postgresql://USER@HOST/DATABASE"
        )
    _live(settings, _work(settings, say))


def _live(settings: Settings, life: Coroutine[Any, Any, None]) -> None:
    logs.configure(settings.log_level, settings.log_format)
    for name, meant in mistaken_variables(os.environ).items():
        logger.warning("%s is no setting: is %s meant?", name, meant)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(life)


def build(
    settings: Settings, database: Database, clock: Clock, vault: Vault
) -> tuple[Context, Executor, Deliverer]:
    """The parts of one service, put together; its jobs are not started."""
    metrics, store = Metrics(), database.store
    backends = _backends(settings, clock, metrics)
    ctx = Context(
        settings,
        clock,
        store,
        database.jobs(clock, backends, settings),
        database.changes,
        Feeds(store, database.changes),
        Live(),
        Hints(clock),
        backends,
        _poster(settings, clock),
        vault,
        metrics,
    )
    ctx.metrics.writer_waiting.set_function(lambda: store.waiting)
    store.on_commit = ctx.metrics.committed
    return ctx, Executor(ctx), Deliverer(ctx)


def _poster(settings: Settings, clock: Clock) -> Poster:
    return Poster(
        allow_private=settings.allow_private_webhooks,
        connect_timeout=settings.webhook_connect_timeout,
        answer_timeout=settings.webhook_answer_timeout,
        whole_timeout=settings.webhook_timeout,
        clock=clock,
    )


def _backends(settings: Settings, clock: Clock, observer: Observer) -> Backends:
    backends: list[Backend] = [Echo(clock)]
    if settings.upstream:
        # Imported here: without a model server, its HTTP client need not be in memory.
        from runbell.service.backends.upstream import Upstream

        backends += [Upstream(each, clock, observer=observer) for each in settings.upstream]
    return Backends(backends, clock, observer)


def handlers(executor: Executor, deliverer: Deliverer) -> dict[JobKind, Handler]:
    """Who does each kind of job."""
    return {
        JobKind.RUN: executor.execute,
        JobKind.EXPIRE: executor.expire,
        JobKind.FINISH_CANCEL: executor.finish_cancel,
        JobKind.DELIVER: deliverer.deliver,
    }


async def _work(settings: Settings, say: Callable[[str], None]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        listener = None
        if settings.metrics_port is not None:
            listener, _ = _bind(settings.host, settings.metrics_port, "--metrics-port")
            stack.enter_context(contextlib.closing(listener))
        vault = await agreed_vault(settings, database)
        ctx, executor, deliverer = build(settings, database, database.clock, vault)
        _spare_the_collector()
        ctx.backends.start()
        await database.join(ctx, executor.look_again)
        ctx.jobs.start(handlers(executor, deliverer))
        stop = asyncio.Event()
        with _signals(stop), _background(ctx.metrics.watch_loop()):
            async with _probed(ctx, listener) as app:
                say(f"runbell: working for {database.name}")
                if listener is not None:
                    say(f"runbell: metrics are on {_root(listener)}/metrics")
                await stop.wait()
                app.stop()
                await ctx.jobs.stop(settings.shutdown_grace)
            await _let_go(ctx, deliverer)


@contextlib.asynccontextmanager
async def _probed(ctx: Context, listener: socket.socket | None) -> AsyncIterator[App]:
    """A worker's pages, where it listens: until its last job has ended they say how it is."""
    project = await ensure_project(ctx.store, ctx.clock, DEFAULT_PROJECT)
    app = App(ctx, Access(ctx.store, ctx.settings.api_key, project.id), api=False)
    if listener is None:
        yield app
        return
    server = _Server(_uvicorn(app, grace=1))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await server.listening(serving)
        yield app
    finally:
        server.should_exit = True
        await serving


async def _let_go(ctx: Context, deliverer: Deliverer) -> None:
    """After the last job: end what is left."""
    await deliverer.close()
    await ctx.poster.close()
    await ctx.backends.close()


async def _serve(settings: Settings, say: Callable[[str], None]) -> None:
    async with open_database(settings) as database:
        listener, loopback = _bind(settings.host, settings.port)
        with contextlib.closing(listener):
            _raise_file_limit()
            await _serve_from(settings, database, listener, loopback=loopback, say=say)


async def _serve_from(
    settings: Settings,
    database: Database,
    listener: socket.socket,
    *,
    loopback: bool,
    say: Callable[[str], None],
) -> None:
    vault = await agreed_vault(settings, database)
    ctx, executor, deliverer = build(settings, database, database.clock, vault)
    project = await ensure_project(ctx.store, ctx.clock, DEFAULT_PROJECT)
    url = f"{_root(listener)}/v1"
    about_keys = await _about_keys(ctx, database, url, loopback=loopback)
    access = Access(ctx.store, settings.api_key, project.id)
    app = App(ctx, access, database.limits(settings.rpm))
    server = _Server(_uvicorn(app, grace=max(1, round(settings.shutdown_grace))))
    await ctx.hints.learn(ctx.store)
    _spare_the_collector()
    ctx.backends.start()
    await database.join(ctx, executor.look_again)
    ctx.jobs.start(handlers(executor, deliverer))
    stop = asyncio.Event()
    with _signals(stop), _background(retention.sweep(ctx), ctx.metrics.watch_loop()):
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.listening(serving)
        logger.info("everything is kept in %s", database.name)
        if settings.retain_days:
            logger.info("what ended more than %g days ago is removed", settings.retain_days)
        say(f"runbell: listening on {url}")
        for line in about_keys:
            say(line)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        app.stop()
        server.should_exit = True
        # At once: what is handed out from now on would be refused by those who stop.
        stopping = asyncio.create_task(ctx.jobs.stop(settings.shutdown_grace))
        logger.info(
            "stopping: open requests, and %s, have %g s",
            await _going_on(ctx, "model call", RunStatus.IN_PROGRESS),
            settings.shutdown_grace,
        )
        await asyncio.gather(serving, stopping)
        await _let_go(ctx, deliverer)
        going_on = await _going_on(ctx, "run", RunStatus.QUEUED, RunStatus.IN_PROGRESS)
        logger.info("stopped; to go on at the next start: %s", going_on)


async def _going_on(ctx: Context, name: str, *statuses: RunStatus) -> str:
    """How many runs have one of these statuses, in words, by another name."""
    found = await backlog.look(ctx)
    if found is None:
        return f"some {name}s"
    count = sum(found.runs[status] for status in statuses)
    return f"1 {name}" if count == 1 else f"{count or 'no'} {name}s"


def _uvicorn(app: App, *, grace: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace,
    )


class _Server(uvicorn.Server):
    """uvicorn, without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def listening(self, serving: asyncio.Task[None]) -> None:
        """Return when requests are taken, or raise what kept that from happening."""
        while not self.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.001)
        if serving.done():
            serving.result()
            raise ConfigurationError("the server ended before it had begun")


async def _about_keys(ctx: Context, database: Database, url: str, *, loopback: bool) -> list[str]:
    """What to say about keys. Where there is none, one is made: shown once on a terminal, else left
    in a file; beyond loopback, it has to be one that somebody chose."""
    chosen = ctx.settings.api_key
    if chosen is not None:
        if not loopback and len(chosen) < MIN_KEY_LENGTH:
            raise ConfigurationError(
                f"RUNBELL_API_KEY has {len(chosen)} characters; to be reached from other machines "
                f"it needs {MIN_KEY_LENGTH} at the least"
            )
        return []
    keys = [key for key in await ctx.store.read(projects.list_keys) if key.revoked_at_ms is None]
    if not loopback and not any(key.origin == "keys" for key in keys):
        raise ConfigurationError(
            f"{ctx.settings.host} can be reached from other machines: set RUNBELL_API_KEY, or make "
            f"a key with: runbell keys create --database {database.url}"
        )
    path = database.file or Path("runbell").resolve()  # noqa: ASYNC240 - asks no disk
    if keys:
        are = "1 API key is" if len(keys) == 1 else f"{len(keys)} API keys are"
        named = shlex.quote(database.url)
        return [f"runbell: {are} open; for another: runbell keys create --database {named}"]
    project = await ensure_project(ctx.store, ctx.clock, DEFAULT_PROJECT)
    key, row = new_key(ctx.clock, project, "serve")
    shown = "runbell: this is your API key; it is not shown again"
    value = key
    if not sys.stdout.isatty():
        file = path.with_name(path.name + ".api-key")
        # In front of the row: a key that exists and that nobody can read would lock everybody out.
        _write_secret(file, key)
        shown = f"runbell: the API key that was made for you is in {file}; to use it:"
        value = f'"$(cat {shlex.quote(str(file))})"'
    await ctx.store.write(lambda tx: projects.insert_key(tx, row))
    return [shown, f"export OPENAI_BASE_URL={url}", f"export OPENAI_API_KEY={value}"]


def _write_secret(file: Path, text: str) -> None:
    """Write a file that nobody but its owner could read at any moment."""
    try:
        file.unlink(missing_ok=True)
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as stream:
            stream.write(f"{text}\n")
            stream.flush()
            os.fsync(fd)
    except OSError as error:
        raise ConfigurationError(
            f"cannot leave the API key in {file} ({error.strerror}): make the folder writable, "
            "or set RUNBELL_API_KEY"
        ) from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not made for this Python: asyncio's own loop does the same, slower
        return None
    return uvloop.new_event_loop


def _bind(host: str, port: int, option: str = "--port") -> tuple[socket.socket, bool]:
    """A socket that is bound, not listening yet; and whether only this machine can reach it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"--host {host} is no address here: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # Listening now, not when uvicorn does: only this refuses a second instance for certain.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} on {host} is in use by another process: stop that one, or choose "
                f"another port with {option} (0 takes a free one)"
            ) from error
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror}"
        ) from error
    return listener, ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback


def _root(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        # All addresses of the machine: no client could use that one.
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _spare_the_collector() -> None:
    """Let the cyclic collector pass over what lives as long as the process, and look less often.

    A request makes a few hundred short-lived objects and hardly a cycle; measured, this saves 8 %.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _raise_file_limit() -> None:
    """Every connection is a file: take as many as the system allows without asking for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS caps it below what it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _background(*work: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Have what never ends done beside the block. It does nothing that must not be broken off."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
