"""What this package registers."""

from headwater import TaskEntry, hookimpl

API = 1


@hookimpl
def headwater_tasks():
    return [
        TaskEntry(
            name="corridor",
            kind="gauss.points",
            summary="points in a long and narrow corridor",
            task="corridor.task:Corridor",
            config="corridor.task:CorridorConfig",
        )
    ]
