"""A measured figure beside what it should be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """A measured figure beside its bound, which is a maximum or a minimum."""

    name: str
    value: float
    bound: float
    is_maximum: bool
    unit: str = "×"

    @property
    def passed(self) -> bool:
        """Whether the figure keeps to the bound."""
        return self.value <= self.bound if self.is_maximum else self.value >= self.bound

    def __str__(self) -> str:
        """One line for people."""
        sign = "≤" if self.is_maximum else "≥"
        number = "{:.1%}" if self.unit == "%" else "{:.2f}" + self.unit
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.name}: {number.format(self.value)} ({sign} {number.format(self.bound)})"
