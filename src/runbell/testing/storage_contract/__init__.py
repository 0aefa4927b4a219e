"""What every database driver has to pass: one suite of tests, to be run on each.

A driver's test module inherits the suite and says how a store is opened:

    @pytest.fixture(scope="module")
    def stores(tmp_path_factory) -> Stores:
        return lambda: opened(...)

    class TestSQLite(StorageContract):
        pass

`stores` opens, with each call, a store of its own that has today's schema and no rows. Its scope
is not `function`, since property tests open a store for each example. Needs `pytest` and
`hypothesis`; for the reports of failed assertions, `pytest.register_assert_rewrite` before the
import.
"""

from runbell.testing.storage_contract.feed import FeedContract
from runbell.testing.storage_contract.guards import GuardContract
from runbell.testing.storage_contract.idempotency import IdempotencyContract
from runbell.testing.storage_contract.pages import PageContract
from runbell.testing.storage_contract.project_runs import ProjectRunContract
from runbell.testing.storage_contract.records import RecordContract
from runbell.testing.storage_contract.runs import RunContract
from runbell.testing.storage_contract.stories import Stores
from runbell.testing.storage_contract.transactions import TransactionContract
from runbell.testing.storage_contract.webhooks import WebhookContract

__all__ = ["StorageContract", "Stores"]


class StorageContract(
    TransactionContract,
    RecordContract,
    PageContract,
    RunContract,
    ProjectRunContract,
    GuardContract,
    FeedContract,
    IdempotencyContract,
    WebhookContract,
):
    """The whole contract."""
