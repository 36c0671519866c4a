"""Logs the events of a run to ``steps.log`` in its directory, whatever is trained."""

from headwater import hookimpl

API = 1


class Hooks:
    """The entry point names an object here, not a module: either will do."""

    def _note(self, fit, text):
        with (fit.run.path / "steps.log").open("a") as out:
            out.write(text + "\n")

    @hookimpl
    def headwater_fit_start(self, fit):
        self._note(fit, f"start at {fit.step}")

    @hookimpl
    def headwater_step_end(self, fit, step):
        seen = fit.state.setdefault("steplog", {"steps": 0})  # checkpointed: it counts on after a resume
        seen["steps"] += 1

    @hookimpl
    def headwater_checkpoint_saved(self, fit, step):
        self._note(fit, f"saved {step}")

    @hookimpl
    def headwater_fit_end(self, fit, reason):
        self._note(fit, f"end at {fit.step} after {fit.state['steplog']['steps']} steps: {reason}")


hooks = Hooks()
