"""Texts in the viewer: words and pieces, choosing, filters, generated tokens, by pointer and by keys."""

import pytest
from viewed import HOSTILE, batch, generation, several, table, text, translation


def chips(page, panel=0):
    return page.locator("main > section").nth(panel).locator("[role=option]")


def texts(page):
    return [t.strip() for t in chips(page).all_inner_texts()]


def steps(page, panel=0):
    """The class of the colour of every chip, None where it has none."""
    listed = [c.get_attribute("class").split() for c in chips(page, panel).all()]
    return [next((int(n[1:]) for n in names if n[0] == "s" and n[1:].isdigit()), None) for names in listed]


def ledger(page, panel=0):
    rows = page.locator("main > section").nth(panel).locator("table.ledger tbody tr").all()
    return {r.locator("th").inner_text(): number(r.locator("td").first.inner_text()) for r in rows}


def number(shown):
    return float(shown.replace("\u2212", "-"))


def adds_up(entries):
    total = entries["explained value"]
    return abs(sum(v for name, v in entries.items() if name != "explained value") - total) < 2e-3 * max(1, abs(total))


def test_words_and_pieces(show):
    page = show(text())
    assert texts(page) == ["[CLS]", "unbelievable", HOSTILE, "film", "[SEP]"]
    assert steps(page) == [None, 40, 10, 22, None]  # 2.5 is the largest; -1.25 is half of it against
    page.get_by_label("Text as").select_option("pieces")
    assert texts(page) == ["[CLS]", "un", "##believ", "##able", HOSTILE, "film", "[SEP]"]
    assert steps(page) == [None, 30, 15, 40, 8, 23, None]
    joined = [("joined" in c.get_attribute("class").split()) for c in chips(page).all()]
    assert joined == [False, False, True, True, False, False, False]


def test_hostile_text_is_text(show):
    page = show(text(), table())
    assert page.locator("img[src=x]").count() == 0 and page.locator("body script").count() == 2
    assert HOSTILE in texts(page) and page.get_by_role("rowheader", name=HOSTILE).count() == 1
    assert page.title() == "Why positive?"


def test_the_network_is_out_of_reach(show):
    page = show(text())
    refused = """async (url) => { try { await fetch(url); return "reached"; } catch { return "refused"; } }"""
    assert page.evaluate(refused, "data:,x") == "refused"
    html = "() => { try { document.body.innerHTML = '<b>x</b>'; return 'parsed'; } catch { return 'refused'; } }"
    assert page.evaluate(html) == "refused"
    assert any("Content Security Policy" in e or "TrustedHTML" in e for e in page.seen["errors"])
    page.seen["errors"].clear()  # these were asked for


def test_the_ledger_follows_what_is_chosen(show):
    page = show(text())
    assert ledger(page) == {"bias": 0.75, "inputs": 1.65, "explained value": 2.4}
    chips(page).nth(1).click()
    chips(page).nth(3).click()
    entries = ledger(page)
    assert entries["inputs: 2 chosen"] == 2.75 and adds_up(entries)
    assert "2 chosen: +2.750" in page.locator("#said").inner_text()
    page.get_by_label("Text as").select_option("pieces")  # stays chosen
    assert ledger(page)["inputs: 4 chosen"] == 2.75
    chips(page).nth(1).focus()
    page.keyboard.press("Escape")
    assert ledger(page) == {"bias": 0.75, "inputs": 1.65, "explained value": 2.4}
    assert page.locator("#said").inner_text() == "nothing chosen"


def test_numbers_on_hover_and_on_focus(show):
    page = show(text())
    chips(page).nth(1).hover()
    assert "unbelievable: +2.500" in page.locator("#readout").inner_text()
    assert "104.2% of the explained value" in page.locator("#readout").inner_text()
    chips(page).nth(3).focus()
    assert chips(page).nth(3).get_attribute("aria-label") == "film: +0.2500"


def test_everything_by_keys(show):
    page = show(text())
    page.keyboard.press("Tab")  # words or pieces
    while page.evaluate("document.activeElement.getAttribute('role')") != "option":
        page.keyboard.press("Tab")
    focused = "document.activeElement.textContent"
    assert page.evaluate(focused) == "[CLS]"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "unbelievable"
    page.keyboard.press("Space")
    assert ledger(page)["inputs: 1 chosen"] == 2.5
    page.keyboard.press("Shift+ArrowRight")
    assert ledger(page)["inputs: 2 chosen"] == 1.25
    page.keyboard.press("End")
    assert page.evaluate(focused) == "[SEP]"
    page.keyboard.press("Home")
    assert page.evaluate(focused) == "[CLS]"
    page.keyboard.press("Escape")
    assert "inputs" in ledger(page)
    assert page.locator("[role=option][tabindex='0']").count() == 1  # one stop for the tab key


def test_lines_are_left_upwards_and_downwards(show):
    page = show(text([f"word{i}" for i in range(200)], [1.0] * 200))
    chips(page).nth(0).focus()
    top = "document.activeElement.offsetTop"
    first = page.evaluate(top)
    page.keyboard.press("ArrowDown")
    second = page.evaluate(top)
    assert second > first
    page.keyboard.press("ArrowDown")
    assert page.evaluate(top) > second
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(top) == first
    page.keyboard.press("ArrowUp")
    assert page.evaluate(top) == first


def test_filters_by_sign_and_size(show):
    page = show(text())
    page.get_by_label("Show").select_option("against")
    assert steps(page) == [None, None, 10, None, None]
    page.get_by_label("Show").select_option("both")
    page.get_by_label("From this share").fill("50")
    assert steps(page) == [None, 40, 10, None, None]
    assert page.locator("output").inner_text() == "50%"


def test_a_batch_by_a_list_and_one_scale_for_all(show):
    page = show(batch())
    assert page.get_by_label("Sample").locator("option").all_inner_texts() == ["1 · good", "2 · bad"]
    assert texts(page) == ["a", "good", "film"] and steps(page) == [40, 10, 25]
    assert "nobody computed it" in page.locator("table.ledger caption").inner_text()
    page.get_by_label("Scale").select_option("shared")
    assert steps(page) == [22, 19, 21]
    page.get_by_label("Sample").select_option("1")
    assert texts(page) == ["a", "bad", "film"] and steps(page) == [40, 30, 15]


def test_results_side_by_side(show):
    page = show(text(), batch(), names=["one text", "two texts"], title="Two results")
    assert page.locator("h2").all_inner_texts() == ["one text", "two texts"] and page.title() == "Two results"
    page.get_by_label("Sample").select_option("1")
    assert chips(page, 0).count() == 5 and [c.strip() for c in chips(page, 1).all_inner_texts()] == ["a", "bad", "film"]
    assert adds_up(ledger(page, 0)) and adds_up(ledger(page, 1))


def test_several_targets_by_a_list(show):
    page = show(several())
    assert steps(page) == [30, 40]
    page.get_by_label("Explained", exact=True).select_option("1")
    assert steps(page) == [0, 23] and adds_up(ledger(page))
    assert page.locator("dd").first.inner_text() == "dog (\u22121.500)"


def test_a_generated_token_shows_what_made_it(show):
    page = show(generation())
    page.get_by_label("Text as").select_option("pieces")
    assert steps(page) == [40, 0, 20, 20, 20]  # of "sat": "the" +1, "cat" -1
    chips(page).nth(4).hover()
    assert (
        "##done: +0 " in page.locator("#readout").inner_text()
        and page.locator("dd").first.inner_text() == "##done (+2.500)"
    )
    assert steps(page) == [40, 20, 20, 13, 20] and adds_up(ledger(page))
    page.mouse.move(5, 5)
    assert steps(page) == [40, 0, 20, 20, 20]  # back to the one that is kept
    chips(page).nth(3).click()
    page.mouse.move(5, 5)
    page.locator("select").first.focus()
    assert steps(page) == [40, 20, 10, 20, 20]
    assert "explained: un" in page.locator("#said").inner_text()
    chips(page).nth(0).click()  # of the prompt: chosen
    assert ledger(page)["inputs: 1 chosen"] == 2


def test_arrow_keys_go_through_generated_tokens(show):
    page = show(generation())
    chips(page).nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert steps(page) == [40, 0, 20, 20]
    page.keyboard.press("ArrowRight")  # "undone", two targets: +5 of "the", -1 of "sat", -1 of itself
    assert steps(page) == [40, 20, 16, 16] and ledger(page)["explained value"] == 4.0
    page.keyboard.press("Enter")
    page.locator("select").first.focus()
    assert steps(page) == [40, 20, 16, 16] and page.locator("dd").first.inner_text().startswith("undone (")


def test_encoder_beside_decoder(show):
    page = show(translation())
    boxes = page.locator("[role=listbox]")
    left, right = boxes.nth(0).bounding_box(), boxes.nth(1).bounding_box()
    assert right["x"] > left["x"] + left["width"] and abs(right["y"] - left["y"]) < 5
    assert steps(page)[:2] == [40, 20]  # "sat": "die" +5
    boxes.nth(1).locator("[role=option]").nth(3).hover()
    assert steps(page)[:2] == [24, 40] and adds_up(ledger(page))  # "undone": "die" +1, "Katze" +5, "the" +5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_theme(show, scheme):
    page = show(text(), scheme=scheme)
    panel = page.evaluate("getComputedStyle(document.querySelector('main > section')).backgroundColor")
    assert (sum(map(int, panel[4:-1].split(","))) > 600) == (scheme == "light")


def test_white_space_is_seen_and_special_tokens_alone_have_no_scale(show):
    page = show(text(["a", "\n", "b"], [1.0, 0.5, 0.25]))
    page.get_by_label("Text as").select_option("pieces")
    assert chips(page).all_inner_texts() == ["a", "\\n", "b"] and page.locator(".legend").is_visible()
    page = show(text(["[CLS]", "[SEP]"], [1.0, 0.5]))
    assert chips(page).count() == 2 and not page.locator(".legend").is_visible()
