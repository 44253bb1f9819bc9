"""A cluster of one: the host in this process owns every rollout."""

from collections.abc import Sequence

from orchestrator.interfaces import Host
from orchestrator.models import RolloutKey


class LocalCluster:
    """`orchestrator.interfaces.Cluster`. The host's life is its owner's: `aclose` leaves it alone."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def host_for(self, rollout: RolloutKey) -> Host:
        """This host, whichever the rollout: the store refuses one that another host owns."""
        return self._host

    async def hosts(self) -> Sequence[Host]:
        return (self._host,)

    async def aclose(self) -> None:
        """Nothing is held."""
