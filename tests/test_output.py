"""Tables on a narrow terminal."""

from videoblip2.cli.output import table


def test_a_long_name_goes_on_in_the_next_line_and_an_id_stays_whole():
    drawn = table("Runs", ["id", "name"], [["0123456789abcdef" * 2, "a-long-name-of-a-run-" * 10]], fold=("name",))
    assert "0123456789abcdef" * 2 in drawn
    assert "".join(line.split("│")[2].strip() for line in drawn.splitlines() if "│" in line) == (
        "a-long-name-of-a-run-" * 10
    )
