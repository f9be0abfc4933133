"""Prices, each with its date and where it is from. No price here is looked up at run time.

Change a number only together with its date and source: reports quote them side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

PER_MILLION = 1_000_000


@dataclass(frozen=True)
class ApiPrice:
    """US dollars for a million tokens of input (found in the cache or not) and of output."""

    model: str
    date: str  # ISO date from which the price held
    hit: float
    miss: float
    output: float
    source: str

    def cost(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """Dollars for a request; `cached_tokens` are those of `input_tokens` found in the cache."""
        if not 0 <= cached_tokens <= input_tokens:
            raise ValueError(f"{cached_tokens} cached tokens of {input_tokens}")
        missed = input_tokens - cached_tokens
        return (cached_tokens * self.hit + missed * self.miss + output_tokens * self.output) / PER_MILLION


@dataclass(frozen=True)
class HourPrice:
    """US dollars for an hour of a machine, with the assumption it rests on."""

    machine: str
    usd: float
    date: str
    source: str

    def cost(self, seconds: float) -> float:
        return self.usd * seconds / 3600


def electricity(machine: str, watts: float, usd_per_kwh: float, date: str) -> HourPrice:
    """What an hour costs on a machine that is owned: its power and nothing for buying it."""
    source = f"assumed: {watts:g} W at ${usd_per_kwh:g}/kWh, electricity alone"
    return HourPrice(machine, watts / 1000 * usd_per_kwh, date, source)


R1 = ApiPrice(
    "deepseek-reasoner (R1)",
    "2025-01-20",
    0.14,
    0.55,
    2.19,
    "DeepSeek API documentation, pricing in USD at R1's launch",
)
# OpenAI's own page of that day was not read: press of January 2025 quotes it alike.
O1 = ApiPrice("o1", "2025-01-20", 7.50, 15.00, 60.00, "press quoting OpenAI's price list at R1's launch")
API_PRICES = (R1, O1)

# Neither number is measured: a laptop draws 15-45 W under load, a household pays $0.10-0.40/kWh.
LAPTOP = electricity("laptop", watts=30, usd_per_kwh=0.30, date="2026-11-23")
H800 = HourPrice(
    "H800", 2.00, "2024-12-27", "rental price assumed in the DeepSeek-V3 report, arXiv 2412.19437"
)
