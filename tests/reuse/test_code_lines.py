"""What counts as a line of code, and when it counts as executed."""

from textwrap import dedent

from scripts.reuse.code_lines import count, count_executed


def test_blank_lines_comments_and_docstrings_do_not_count() -> None:
    source = dedent(
        '''
        """A module.

        It has a docstring of three lines."""

        import os  # and a comment

        # another one
        class Thing:
            """A class."""

            size: int = 3
            """A field."""
        '''
    )
    assert count(source) == 3


def test_a_text_that_is_used_is_code_also_over_several_lines() -> None:
    assert count('text = """a\n\nb"""\n') == 3
    assert count('say("a"\n    "b")\n') == 2


def test_a_statement_over_several_lines_is_executed_with_all_of_them_but_its_comments() -> None:
    source = "call(\n    1,\n    # one more\n\n    2,\n)\nother()\n"
    assert count(source) == 5
    assert count_executed(source, {2}) == 4
    assert count_executed(source, {7}) == 1
    assert count_executed(source, set()) == 0


def test_the_body_of_a_function_counts_only_if_it_ran() -> None:
    source = "@cache\ndef f():\n    return 1\n"
    assert count_executed(source, {1, 2}) == 2
    assert count_executed(source, {1, 2, 3}) == 3


def test_lines_without_bytecode_go_with_what_follows_them() -> None:
    source = dedent(
        """\
        if a:
            b()
        else:
            try:
                c()
            finally:
                d()
        """
    )
    assert count_executed(source, {1, 2}) == 2
    assert count_executed(source, {1, 5, 7}) == 6
