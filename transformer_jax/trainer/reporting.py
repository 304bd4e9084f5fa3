"""What a run tells: lines and a progress bar, log.jsonl, TensorBoard, curves."""

import datetime
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

import transformer_jax
from transformer_jax.trainer.dev import DevReport

LOG_FILE = "log.jsonl"
CURVES_FILE = "curves.png"
TENSORBOARD_DIR = "tensorboard"


class Reporter:
    """Prints and logs the events of a run; silent when not `active`.

    Only the main process is active. Every event is one JSON object a line in
    `log.jsonl`, with `event`, `step`, `time` (UTC) and `seconds` (wall clock of the
    whole run, earlier starts included). Numbers of train and evaluate events also go
    to TensorBoard.
    """

    def __init__(self, workdir: Path, *, active: bool = True):
        self.workdir, self.active = workdir, active
        self._log: Any = None
        self._board: Any = None
        self._bar: Any = None

    def open(self, first_step: int) -> None:
        """Opens the logs; TensorBoard forgets what came after `first_step`."""
        if not self.active:
            return
        from tensorboardX import SummaryWriter

        path = self.workdir / LOG_FILE
        if path.is_file():
            # A killed run may have left half a line.
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self._log = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(self.workdir / TENSORBOARD_DIR), purge_step=first_step + 1
        )

    def close(self) -> None:
        """Closes the bar and the logs."""
        for part in (self._bar, self._log, self._board):
            if part is not None:
                part.close()
        self._log = self._board = self._bar = None

    def say(self, text: str) -> None:
        """Prints lines, above the progress bar if there is one."""
        if not self.active:
            return
        if self._bar is not None:
            tqdm.write(text)
        else:
            print(text, flush=True)

    def start_bar(self, first_step: int, last_step: int) -> None:
        """Shows a progress bar, on a terminal."""
        if self.active and sys.stderr.isatty():
            self._bar = tqdm(
                total=last_step,
                initial=first_step,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def advance(self) -> None:
        """One more update is under way."""
        if self._bar is not None:
            self._bar.update()

    def event(self, name: str, step: int, seconds: float, **values: Any) -> None:
        """Writes one event to the logs."""
        if self._log is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {
            "event": name,
            "step": step,
            "time": now,
            "seconds": round(seconds, 2),
        }
        record.update({key: _json_value(value) for key, value in values.items()})
        self._log.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._log.flush()
        if name in ("train", "evaluate"):
            for key, value in values.items():
                if isinstance(value, float) and math.isfinite(value):
                    self._board.add_scalar(f"{name}/{key}", value, step)

    def updates(self, step: int, last_step: int, values: Mapping[str, float]) -> None:
        """Shows where training stands: in the bar, or as a line."""
        rate = values.get("tokens_per_second", 0.0)
        loss = values.get("loss", math.nan)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s")
            return
        left = values.get("seconds_per_step", 0.0) * (last_step - step)
        self.say(
            f"step {step:>6}/{last_step}  loss {loss:6.3f}  "
            f"perplexity {values.get('perplexity', math.nan):9.2f}  "
            f"accuracy {values.get('accuracy', math.nan):6.1%}  "
            f"{rate:>8,.0f} tokens/s  "
            + (f"MFU {values['mfu']:.1%}  " if "mfu" in values else "")
            + f"{duration(left)} left"
        )

    def evaluated(
        self, step: int, report: DevReport, *, best: bool, seconds: float
    ) -> None:
        """Shows an evaluation, with sample translations."""
        values = report.values
        self.say(
            f"step {step:>6}  dev  loss {values['loss']:6.3f}  "
            f"perplexity {values['perplexity']:9.2f}  "
            f"accuracy {values['accuracy']:6.1%}  BLEU {values['bleu']:5.2f}  "
            f"chrF {values['chrf']:5.2f}  in {duration(seconds)}"
            + ("  best so far" if best else "")
        )
        for sample in report.samples:
            for name, text in sample._asdict().items():
                self.say(f"    {name:<12} {text}")
            self.say("")

    def ended(self, text: str) -> None:
        """Closes the bar and says how the run ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self.say(text)


def _json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity; null stands for both."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.6g}")
    return value


def duration(seconds: float) -> str:
    """A span of time in the units that matter.

    >>> duration(7), duration(190), duration(8000)
    ('7 s', '3 min 10 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def environment() -> dict[str, Any]:
    """Versions and hardware, for the logs."""
    device = jax.devices()[0]
    return {
        "transformer_jax": transformer_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the checkout this package runs from, if it is one."""
    root = Path(transformer_jax.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
