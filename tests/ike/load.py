"""As much as goes through a tunnel, both ways, of which nothing may be lost: numbered datagrams, and echo
requests in between."""

from hosts.flow import Flow
from lab import traffic

# Of packets that the kernel itself sends into a device now and then (MLD).
NOT_OURS = ("no_policy",)


def drops(*daemons):
    """What each has dropped by now, by name."""
    return [{name: n for name, n in daemon.drops().items() if n and name not in NOT_OURS} for daemon in daemons]


class Load:
    """A context manager. `daemons`: those on the way; they must not drop anything meanwhile."""

    def __init__(self, here, there, here_address, there_address, daemons):
        self.flow = Flow(here, there_address)
        self.floods = [traffic.Flood(here, there, here_address, there_address),
                       traffic.Flood(there, here, there_address, here_address)]
        self.daemons, self.before = daemons, drops(*daemons)

    def __enter__(self):
        self.flow.__enter__()
        for flood in self.floods:
            flood.start()
        return self

    def __exit__(self, kind, *_):
        errors = []
        for flood in self.floods:
            try:
                flood.stop()
            except AssertionError as error:
                errors.append(str(error))
        self.flow.__exit__()
        if kind is None:
            after = drops(*self.daemons)
            assert self.flow.lost == 0 and not errors and after == self.before, (
                f"{self.flow.lost} of {self.flow.sent} echoes lost; {errors}; dropped: {self.before}, {after}")

    def __str__(self):
        return f"{self.flow.sent} echoes and {sum(flood.sent for flood in self.floods)} datagrams, none lost"
