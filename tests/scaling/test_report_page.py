"""Markdown as one HTML file: what it knows, and that nothing in it is loaded or run."""

import base64

from cs336.scaling.report_page import as_html, pictures, without_pictures

PAGE = """# A title

Words with **weight**, `code` and <b>no tag</b>.

## One & more

| name | number |
| ---- | -----: |
| a<b  |     12 |

- first `x`
  and its end
- second

![A picture (small)](dot.png)
"""


def test_every_kind_of_block_is_drawn_and_everything_is_escaped(tmp_path):
    (tmp_path / "dot.png").write_bytes(b"not really a picture")
    page = as_html("A & B", PAGE, tmp_path)
    assert "<title>A &amp; B</title>" in page and '<h2 id="one-more">One &amp; more</h2>' in page
    assert '<nav><a href="#one-more">One &amp; more</a></nav>' in page
    assert "<b>weight</b>, <code>code</code> and &lt;b&gt;no tag&lt;/b&gt;" in page
    assert '<th class="number">number</th>' in page and "<td>a&lt;b</td>" in page and ">12</td>" in page
    assert "<li>first <code>x</code> and its end</li><li>second</li>" in page
    data = base64.b64encode(b"not really a picture").decode()
    assert f'src="data:image/png;base64,{data}"' in page and "<figcaption>A picture (small)</figcaption>" in page


def test_pictures_are_told_apart():
    assert pictures(PAGE) == ["dot.png"]
    assert "dot.png" not in without_pictures(PAGE) and "## One & more" in without_pictures(PAGE)
