"""How far a load is, for the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rbee_serve.state import LoadProgress

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Load:
    """One count of a load; `total` is 0 where it is unknown."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = ""
    """`bytes`, `layers`, or empty where only the stage is known."""

    @property
    def amount(self) -> str:
        """`61.0 of 134.5 MB`, `12 of 30 layers`, or nothing."""
        if not self.unit:
            return ""
        if self.unit == "layers":
            return f"{self.done} of {self.total} layers" if self.total else f"{self.done} layers"
        power = 0
        while max(self.done, self.total) >= 1000 ** (power + 1) and power < len(_UNITS) - 1:
            power += 1
        done = f"{self.done / 1000**power:.1f}"
        return f"{done} of {self.total / 1000**power:.1f} {_UNITS[power]}" if self.total else f"{done} {_UNITS[power]}"

    @classmethod
    def of(cls, progress: LoadProgress) -> Load:
        """Layers where they are known, else bytes."""
        stage = progress.stage.replace("_", " ")
        if progress.held_by is not None:
            stage += f", held by {progress.held_by}"
        if progress.layers_loaded is not None:
            return cls(stage, progress.layers_loaded, progress.layers_total or 0, "layers")
        if progress.bytes_done is not None:
            return cls(stage, progress.bytes_done, progress.bytes_total or 0, "bytes")
        return cls(stage)
