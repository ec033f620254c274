"""The size of a GPU as people write it, and what CUDA can use of it."""

from __future__ import annotations

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.gpu_size import GIB, parse_gpu_size

USABLE = {
    "12GiB": 11.75,  # RTX 3060
    "16GiB": 14.57,  # T4
    "24GiB": 22.03,  # A10G, L4; 23.6 on a 4090
    "48GiB": 44.40,  # L40S
    "80GiB": 79.15,  # A100
}
"""What torch reports as the total of cards of each size, from public error messages, in GiB."""


@pytest.mark.parametrize("text", USABLE)
def test_a_card_as_sold_has_no_more_than_the_smallest_card_of_that_size(text: str) -> None:
    usable = parse_gpu_size(text).usable_bytes / GIB
    assert 0.88 * USABLE[text] < round(usable, 2) <= USABLE[text]


@pytest.mark.parametrize(
    ("reported", "torch_total"), [(23_028, 22.03), (24_564, 23.52), (46_068, 44.40), (15_360, 14.57)]
)
def test_of_what_nvidia_smi_reports_the_drivers_part_is_missing(reported: int, torch_total: float) -> None:
    usable = parse_gpu_size(f"{reported}MiB").usable_bytes / GIB
    assert torch_total - 0.3 < round(usable, 2) <= torch_total


def test_gb_is_the_same_size_on_the_box_as_gib() -> None:
    assert parse_gpu_size("24GB").usable_bytes == parse_gpu_size("24 GiB").usable_bytes


@pytest.mark.parametrize("text", ["24", "24G", "-24GiB", "0.5GiB", "100MiB", "GiB", "", "nan GiB", "9" * 50 + "GiB"])
def test_what_is_no_size_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--gpu: .*; write [^\n]*$"):
        parse_gpu_size(text)
