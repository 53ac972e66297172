"""Four trackers of experiments, each through its own API: on this machine, unless a variable of its own names a server.

    tensorboard   event files
    mlflow        a database below the run; MLFLOW_TRACKING_URI names a server
    wandb         files of its offline mode, which `wandb sync` sends later; WANDB_MODE=online sends at once
    trackio       its database on this machine; TRACKIO_SPACE_ID names a Space of Hugging Face

A login that lies in the user's home is no wish to send: only the variable is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

PROJECT = "compress"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # a server that is away holds the run up for seconds, not minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""What these libraries would send or print of themselves; who has set one on purpose keeps it."""


class Sink(Protocol):
    """What a run tells a tracker."""

    def settings(self, values: Mapping[str, str | float]) -> None:
        """The settings of the run, once, at its beginning."""
        ...

    def figures(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Figures at one step of a group: a stage of the run, or an epoch of a training."""
        ...

    def files(self, paths: list[Path], verdict: str) -> None:
        """Reports and plan, at the end, and the verdict."""
        ...

    def close(self, kept: bool) -> None:
        """The run is over; whether it kept what was asked of it."""
        ...


class TensorBoard:
    """Event files, as torch writes them."""

    def __init__(self, folder: Path, name: str) -> None:
        writer: Any = import_module("torch.utils.tensorboard")
        self.writer = writer.SummaryWriter(log_dir=str(folder))

    def settings(self, values: Mapping[str, str | float]) -> None:
        self.writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in values.items()))

    def figures(self, group: str, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(f"{group}/{key}", value, step)
        self.writer.flush()

    def files(self, paths: list[Path], verdict: str) -> None:
        # It shows no files; the report is there as text.
        for path in paths:
            if path.suffix == ".md":
                self.writer.add_text("report", path.read_text(encoding="utf-8"))
        self.writer.add_text("verdict", verdict)

    def close(self, kept: bool) -> None:
        self.writer.close()


class MLflow:
    """Through a client of its own, so that a run that is active in the caller's program is left alone."""

    def __init__(self, folder: Path, name: str) -> None:
        mlflow: Any = import_module("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI") or self._local(folder)
        self.client: Any = mlflow.MlflowClient(tracking_uri=place)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(experiment)
        artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (folder / "artifacts").absolute().as_uri()
        number = found.experiment_id if found else self.client.create_experiment(experiment, artifact_location=artifacts)
        self.run: str = self.client.create_run(number, run_name=name).info.run_id

    @staticmethod
    def _local(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{(folder / 'mlflow.db').absolute()}"

    def settings(self, values: Mapping[str, str | float]) -> None:
        for key, value in values.items():
            self.client.log_param(self.run, key, str(value)[:500])

    def figures(self, group: str, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self.client.log_metric(self.run, f"{group}/{key}", value, step=step)

    def files(self, paths: list[Path], verdict: str) -> None:
        self.client.set_tag(self.run, "verdict", verdict)
        for path in paths:
            self.client.log_artifact(self.run, str(path))

    def close(self, kept: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if kept else "FAILED")


class WandB:
    """A run of Weights & Biases."""

    def __init__(self, folder: Path, name: str) -> None:
        wandb: Any = import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(init_timeout=30, console="off", x_disable_stats=True, disable_git=True)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run: Any = wandb.init(
            project=project, name=name, dir=str(folder), mode=mode, settings=settings, reinit="create_new", save_code=False
        )
        self.known = set[str]()

    def settings(self, values: Mapping[str, str | float]) -> None:
        self.run.config.update(dict(values))

    def figures(self, group: str, values: Mapping[str, float], step: int) -> None:
        if group not in self.known:  # a step of its own for each group: its global one may not go back
            self.known.add(group)
            self.run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        self.run.log({f"{group}/step": step, **{f"{group}/{key}": value for key, value in values.items()}})

    def files(self, paths: list[Path], verdict: str) -> None:
        self.run.summary["verdict"] = verdict
        for path in paths:
            self.run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, kept: bool) -> None:
        self.run.finish(exit_code=0 if kept else 1)


class Trackio:
    """A run of trackio."""

    def __init__(self, folder: Path, name: str) -> None:
        if not os.environ.get("TRACKIO_SPACE_ID"):
            folder.mkdir(parents=True, exist_ok=True)
            os.environ.setdefault("TRACKIO_DIR", str(folder.absolute()))
        trackio: Any = import_module("trackio")
        self.run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            embed=False,
        )

    def settings(self, values: Mapping[str, str | float]) -> None:
        self.run.config.update(values)

    def figures(self, group: str, values: Mapping[str, float], step: int) -> None:
        self.run.log({f"{group}/step": step, **{f"{group}/{key}": value for key, value in values.items()}})

    def files(self, paths: list[Path], verdict: str) -> None:
        self.run.log({"verdict": verdict})

    def close(self, kept: bool) -> None:
        self.run.finish()


SINKS: dict[str, Callable[[Path, str], Sink]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
}
"""Name -> what opens it, with a folder for its files and a name for the run."""
