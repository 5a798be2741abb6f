"""Whether any user has a quota of its own: where none has, and there is none for all, nothing needs to be counted."""

from db import user_quotas
from db.periodic import PeriodicThread
from db.pool import Database
from db.wall import ACROSS_USERS

LOOK_EVERY_S = 1.0


class OwnQuotas:
    """Looks every second; before it has looked, and until it knows better, there may be some."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._exist = True
        self._thread = PeriodicThread("own-quotas", self.look, interval_s=LOOK_EVERY_S)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()
        self._thread.wake()

    def close(self) -> None:
        """Ends looking."""
        self._thread.close()

    @property
    def exist(self) -> bool:
        """Whether a user may have one."""
        return self._exist

    def look(self) -> None:
        """Looks whether there are any."""
        self._exist = self._database.read(self._database.call(), user_quotas.exist, user_id=ACROSS_USERS)
