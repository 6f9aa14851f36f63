"""The record of how well a run's confidence agrees with its accuracy, a part of its result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Temperature of a model's logits, fitted on the validation part, and the calibration errors (ECE) without and with it."""

    temperature: float
    """Number by which the logits are divided before the softmax."""
    clips: int
    """Number of validation clips that it was fitted on."""
    val_ece_before: float
    val_ece_after: float
    test_ece_before: float | None = None
    """On the test part, which the fit did not see; None if the run did not evaluate it."""
    test_ece_after: float | None = None

    def line(self) -> str:
        """Say the temperature and what it changes."""
        errors = [("validation", self.val_ece_before, self.val_ece_after)]
        if self.test_ece_before is not None and self.test_ece_after is not None:
            errors.append(("test", self.test_ece_before, self.test_ece_after))
        changes = ", ".join(f"on {part} {before:.4f} → {after:.4f}" for part, before, after in errors)
        return f"calibrated temperature {self.temperature:.2f}; calibration error {changes}"
