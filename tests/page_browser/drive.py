"""Drives the page of a running demo in a headless Chromium, as a person would, and says what it saw.

Called with a folder to meet in: it puts the file `ready` there once the browser runs, waits for `demo.json`
(the demo's address, the token that votes, how many items there will be), puts `looked` there once it has seen the
demo as it is, waits for `retrained` (there are runs of retraining), and ends with `seen.json`. CHROMIUM is the
browser; ROC4MLLM_SCREENSHOTS, if set, a folder for pictures of the demo, ROC4MLLM_RUNS_SCREENSHOTS one for those of
the runs.
"""

import json
import os
import pathlib
import sys
import time
import urllib.request

from playwright.sync_api import expect, sync_playwright

MEETING = pathlib.Path(sys.argv[1])
SCREENSHOTS = os.environ.get("ROC4MLLM_SCREENSHOTS")
RUNS_SCREENSHOTS = os.environ.get("ROC4MLLM_RUNS_SCREENSHOTS")
PATIENCE = 600_000
DESKTOP = {"width": 1440, "height": 1000}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
MARKUP = "zz/<img src=x onerror=window.pwned=1>.jpg"


def say(text):
    print(f"browser: {text}", flush=True)


def patiently(what, ask):
    deadline = time.monotonic() + PATIENCE / 1000
    while True:
        try:
            return ask()
        except OSError as error:
            assert time.monotonic() < deadline, f"{what}: {error}"
            time.sleep(0.05)


def until(page, expression, argument=None):
    """Waits until an expression holds. Playwright's own way takes `eval`, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, f"never came true: {expression}"
        page.wait_for_timeout(50)


def new_page(browser, complaints, **options):
    page = browser.new_context(base_url=ADDRESS, **options).new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    page.on("console", lambda message: message.type == "error" and complaints.append(f"console: {message.text}"))
    page.on("request", lambda request: request.url.startswith(ADDRESS) or complaints.append(f"asks for {request.url}"))
    return page


def shoot(page, name, **options):
    if SCREENSHOTS:
        page.mouse.move(0, 0)
        if options.get("full_page"):
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            page.wait_for_timeout(1000)
            until(page, "[...document.images].every((image) => image.complete)")
            page.evaluate("scrollTo(0, 0)")
        # Photographs come one by one.
        until(page, "[...document.images].every((image) => image.complete || image.getBoundingClientRect().top > innerHeight)")
        page.wait_for_timeout(300)
        page.screenshot(path=pathlib.Path(SCREENSHOTS) / f"{name}.png", animations="disabled", **options)


def number(page, tile):
    text = page.locator(f"#tile-{tile} dd").inner_text()
    return int(text.replace(",", "")) if text[0].isdigit() else None


def no_sideways_scroll(page):
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], f"the page is {wide[0]} px wide in a window of {wide[1]}"


def named_controls(page):
    nameless = page.evaluate("""[...document.querySelectorAll("button, a, input")].filter((control) => control.checkVisibility()
        && !(control.textContent.trim() || control.ariaLabel || control.labels?.length)).map((control) => control.outerHTML)""")
    assert not nameless, f"controls without a name: {nameless}"
    assert page.evaluate("[...document.images].every((image) => image.hasAttribute('alt'))"), "an image without alt"


def watch_scores_arrive(page):
    page.goto("/")
    seen = []
    deadline = time.monotonic() + PATIENCE / 1000
    # How many steps are seen depends on how fast the machine counts.
    while len(seen) < 2:
        assert time.monotonic() < deadline, f"only {seen} scores came while the page was watched"
        scored = number(page, "scored")
        if scored is not None and (not seen or scored > seen[-1]):
            seen.append(scored)
        page.wait_for_timeout(100)
    until(page, "document.querySelectorAll('#gallery li').length >= 3")
    say(f"scores arrived while the page was watched: {seen}")
    shoot(page, "page-live")
    until(
        page,
        """(items) => ["scored", "dead-letters"].map((tile) => Number(document.querySelector(`#tile-${tile} dd`).textContent))
            .reduce((one, other) => one + other) === items""",
        ITEMS,
    )
    expect(page.locator("#status")).to_have_text("Ready")
    expect(page.locator("#tile-lag dd")).to_have_text("0")


def markup_stays_text(page):
    expect(page.locator("#gallery .name", has_text=MARKUP)).to_be_visible()
    expect(page.locator("#failures .name", has_text="<script>window.pwned=2")).to_be_visible()
    assert page.evaluate("window.pwned") is None, "a key was run as markup"
    assert page.locator("img[onerror]").count() == 0
    say("keys that are markup stay text")


def keyboard_only(page):
    page.reload()
    expect(page.locator("#gallery .open").first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "open":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#viewer .viewer-photo img")).to_be_visible()
    until(page, "document.querySelector('#viewer img').naturalWidth > 0")
    shoot(page, "page-photo")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    page.locator("[data-list=best]").focus()
    page.keyboard.press("Enter")
    values = [float(text) for text in page.locator("#gallery .value").all_inner_texts()]
    assert values and values == sorted(values, reverse=True), f"the best first: {values}"
    page.locator("[data-list=latest]").press("Enter")
    say("everything can be reached and opened by keyboard")


def rated(page):
    return page.locator("#name").inner_text().split("/", 1)[1]


def sign_in(page, token):
    expect(page.locator("#rater")).to_be_visible()
    page.locator("#rater-name").fill("ann")
    page.locator("#rater-token").fill(token)
    page.keyboard.press("Enter")
    expect(page.locator("#rater")).to_be_hidden()


def vote_by_keyboard(page):
    page.goto("/label")
    expect(page.locator("#photo img")).to_be_visible()
    sign_in(page, "a-wrong-token-of-some-length")
    page.keyboard.press("5")
    expect(page.locator("#trouble")).to_contain_text("token is wrong")
    expect(page.locator("#given .stored")).to_have_count(0)
    sign_in(page, TOKEN)
    votes = {}
    for key, score in [("7", 7.0), ("3", 3.0), ("0", 10.0)]:
        name = rated(page)
        assert name not in votes, f"{name} is asked for twice"
        votes[name] = score
        page.keyboard.press(key)
        expect(page.locator("#name")).not_to_contain_text(name)
    expect(page.locator("#given .stored")).to_have_count(3)
    # Another thought about the last one: 9 takes the place of 10.
    page.keyboard.press("u")
    assert rated(page) == name, "back to the last photo"
    page.keyboard.press("9")
    votes[name] = 9.0
    expect(page.locator("#given .stored")).to_have_count(3)
    expect(page.locator("#given li").first).to_contain_text("You 9")
    page.keyboard.press("s")
    expect(page.locator("#photo img")).to_be_visible()
    assert rated(page) not in votes
    named_controls(page)
    say(f"voted by keyboard: {votes}")
    return votes


def vote_by_touch(page):
    page.goto("/label")
    sign_in(page, TOKEN)
    expect(page.locator("#photo img")).to_be_visible()
    name = rated(page)
    no_sideways_scroll(page)
    shoot(page, "label-phone")
    page.locator("[data-choice='6']").tap()
    expect(page.locator("#given .stored")).to_have_count(1)
    say("voted by touch")
    return {name: 6.0}


def retraining(page, name):
    """Runs of retraining, each with what became of it, and the report of one."""
    page.goto("/")
    page.locator("#runs").scroll_into_view_if_needed()
    expect(page.locator("#runs > li")).to_have_count(5)
    outcomes = page.eval_on_selector_all("#runs > li", "(runs) => runs.map((run) => run.dataset.outcome)")
    assert outcomes == ["running", "failed", "nothing_to_do", "rejected", "accepted"], outcomes
    running, failed, nothing, rejected, accepted = (page.locator("#runs > li").nth(index) for index in range(5))
    expect(running.locator(".tag")).to_have_text("training 44%")
    assert running.locator("progress").evaluate("(bar) => bar.position") == 0.435
    expect(running).to_contain_text("1,377 new labels")
    expect(failed).to_contain_text("lower train.learning_rate <b>now</b>")
    expect(nothing.locator(".tag")).to_have_text("nothing to do")
    expect(nothing).to_contain_text("retrain.min_new_labels is 500")
    expect(rejected).to_contain_text("newest labels 0.810 (−0.003)")
    expect(rejected).to_contain_text("reports/run-2.html")
    expect(rejected.locator("a")).to_have_count(0)
    expect(accepted).to_contain_text("newest labels 0.810 (+0.031), gold set 0.790 (−0.002), old domain 0.800 (+0.001)")
    link = accepted.get_by_role("link", name="Report of retrain 1")
    with page.context.expect_page() as opened:
        link.press("Enter")
    report = opened.value
    expect(report.locator("h1")).to_have_text("What the gate saw")
    report.close()
    accepted.locator("summary").press("Enter")
    expect(accepted.locator("pre")).to_be_visible()
    no_sideways_scroll(page)
    named_controls(page)
    accepted.locator("summary").press("Enter")
    if RUNS_SCREENSHOTS:
        page.mouse.move(0, 0)
        page.locator("section:has(#runs)").screenshot(path=pathlib.Path(RUNS_SCREENSHOTS) / f"{name}.png", animations="disabled")


def main():
    global ADDRESS, TOKEN, ITEMS
    complaints = []
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        # Root has no user namespaces for the sandbox in most containers; the page is ours.
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        (MEETING / "ready").touch()
        demo = json.loads(patiently("no demo", (MEETING / "demo.json").read_text))
        ADDRESS, TOKEN, ITEMS = demo["address"], demo["token"], demo["items"]
        patiently("the demo does not listen", lambda: urllib.request.urlopen(f"{ADDRESS}/healthz").close())
        desktop = new_page(browser, complaints, viewport=DESKTOP)
        watch_scores_arrive(desktop)
        # Until the worker had started, its answer was 503.
        complaints[:] = [one for one in complaints if "503" not in one]
        markup_stays_text(desktop)
        named_controls(desktop)
        no_sideways_scroll(desktop)
        seen = {"scored": str(number(desktop, "scored")), "dead_letters": str(number(desktop, "dead-letters"))}
        shoot(desktop, "page", full_page=True)
        keyboard_only(desktop)
        # What comes until here is a mistake; a wrong token's refusal is not.
        assert not complaints, complaints
        votes = vote_by_keyboard(desktop)
        shoot(desktop, "label")
        complaints[:] = [one for one in complaints if "401" not in one]

        dark = new_page(browser, complaints, viewport=DESKTOP, color_scheme="dark")
        dark.goto("/")
        expect(dark.locator("#gallery img").first).to_be_visible()
        expect(dark.locator("#histograms svg").first).to_be_visible()
        background = dark.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background != desktop.evaluate("getComputedStyle(document.body).backgroundColor"), "dark is as light"
        shoot(dark, "page-dark")

        phone = new_page(browser, complaints, **PHONE)
        phone.goto("/")
        expect(phone.locator("#gallery img").first).to_be_visible()
        no_sideways_scroll(phone)
        shoot(phone, "page-phone")
        votes |= vote_by_touch(phone)
        assert not complaints, complaints

        (MEETING / "looked").touch()
        patiently("no runs", (MEETING / "retrained").read_text)
        for page, name in [(desktop, "runs"), (dark, "runs-dark"), (phone, "runs-phone")]:
            retraining(page, name)
        assert not complaints, complaints
        browser.close()
    seen["votes"] = votes
    (MEETING / "seen.json").write_text(json.dumps(seen))
    say("nothing to complain about")


if __name__ == "__main__":
    main()
