from __future__ import annotations

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.port_range import ANY_PORT, port_range


def test_without_the_variable_the_system_chooses_the_port() -> None:
    assert port_range({}) == port_range({"RBEE_SERVE_PORTS": ""}) == ANY_PORT


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        ("20000-20003", [20000, 20001, 20002, 20003]),
        ("20000-20000", [20000]),
        ("1024-1025", [1024, 1025]),
        ("65534-65535", [65534, 65535]),
    ],
)
def test_both_ends_of_a_range_belong_to_it(value: str, ports: list[int]) -> None:
    assert list(port_range({"RBEE_SERVE_PORTS": value})) == ports


@pytest.mark.parametrize(
    "value",
    [
        "20000",
        "20100-20000",
        "80-90",
        "0-0",
        "65000-65536",
        "20000-",
        "-20000",
        "20000:20100",
        "20000 - 20100",
        "20000-20100,30000-30100",
        "٢٠٠٠٠-٢٠١٠٠",
        "any",
        "20000-20100\n",
    ],
)
def test_what_is_no_range_is_one_sentence(value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        port_range({"RBEE_SERVE_PORTS": value})
    assert str(refused.value) == (
        f"RBEE_SERVE_PORTS={value} is no range of ports; set the first and the last one, such as 20000-20100, between "
        "1024 and 65535"
    )
