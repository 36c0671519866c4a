"""The kind of task and its entries: data that a listing shows, so nothing heavy is imported."""

from headwater import TaskEntry

KIND = "vision.photographs"

TASKS = (
    TaskEntry(
        name="photographs",
        kind=KIND,
        summary="Photographs of scikit-image and scikit-learn, or your own folders; Set5, B100 and others to test on",
        task="headwater_vision_rescale.tasks.photographs:Photographs",
        config="headwater_vision_rescale.tasks.photographs:PhotographsConfig",
    ),
)
