"""Tables and the page; test_statistics_page.py and test_evaluate.py try them on real content."""

import torch

from valle.utils.html import Section, data_uri, page
from valle.utils.plot import log_spectrograms
from valle.utils.tables import Table, as_markdown

TABLE = Table(["a", "b"], [["x <y>", "1.0 (0.5 to <1.5>)"]])


def test_text_from_elsewhere_cannot_become_html():
    text = page("<t>", [Section("A & B", "<n>", [TABLE])], with_contents=True)
    for part in ("<title>&lt;t&gt;</title>", "&lt;n&gt;</p>", "<td>x &lt;y&gt;</td>"):
        assert part in text
    assert "<td>1.0 <span>(0.5 to &lt;1.5&gt;)</span></td>" in text
    assert '<a href="#a-b">A &amp; B</a>' in text
    assert '<h2 id="a-b">' in text


def test_a_body_stands_as_it_is_and_a_script_only_where_there_is_one():
    plain = page("t", [Section("s", "", body="<p>own</p>")])
    assert "<p>own</p>" in plain
    assert "<script" not in plain
    assert "<script>f()</script>" in page("t", [], script="f()")
    assert "<style>" in plain
    assert "p { }" in page("t", [], style="p { }")


def test_words_and_numbers_are_told_apart():
    assert '<table class="numbers">' in page("t", [Section("s", "", [TABLE])])
    assert '<table class="words">' in page("t", [Section("s", "", [TABLE], in_words=True)])


def test_markdown_has_a_line_under_the_head():
    assert as_markdown(Table(["a", "b"], [["c", "d"]])) == "| a | b |\n| --- | --- |\n| c | d |"


def test_a_file_becomes_an_address():
    assert data_uri(b"\x00\x01", "audio/flac") == "data:audio/flac;base64,AAE="


def test_spectrograms_of_a_row_share_the_loudest_magnitude():
    tone = torch.sin(torch.arange(8000) * 0.3)
    loud, quiet = log_spectrograms([tone, tone / 10])
    assert float(loud.max()) == 0
    torch.testing.assert_close(quiet.max(), torch.tensor(-20.0), atol=1e-3, rtol=0)
    (alone,) = log_spectrograms([tone / 10])
    assert float(alone.max()) == 0
