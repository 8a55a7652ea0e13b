"""The example app: its answers through FastAPI's client, and a person's way through its page in a real browser."""

from __future__ import annotations

import itertools
import json
import re
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from fedrec.errors import BundleError, StoreError

pytest.importorskip("fastapi", reason="needs the extra fedrec[kiosk]")
pytest.importorskip("httpx", reason="needs the extra fedrec[test]")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer Starlettes want another httpx
    from fastapi.testclient import TestClient

KIOSK = Path(__file__).resolve().parents[2] / "examples" / "kiosk"
SMALL = {"devices": 60, "items": 80, "interactions": 8}
SCREEN = {"X-Kiosk": "1"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *(
        "--window-size=1280,1000",
        "--force-prefers-reduced-motion",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ),
)


@pytest.fixture(scope="module")
def kiosk() -> Iterator[object]:
    """The example's modules, which import each other by their own names."""
    sys.path.insert(0, str(KIOSK))
    import app

    yield app
    sys.path.remove(str(KIOSK))
    for name in ("app", "films", "idle", "policy", "screen"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def shipped(kiosk, tmp_path_factory) -> Path:
    """What the kiosk comes with: bundle and public key."""
    home = tmp_path_factory.mktemp("kiosk") / "home"
    kiosk.open_device(home, **SMALL).close()
    for path in home.glob("device*"):
        path.unlink()
    return home


@pytest.fixture
def home(shipped, tmp_path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "home"))


@pytest.fixture
def client(kiosk, home, monkeypatch) -> Iterator[TestClient]:
    """The app in this process; what its walls are drawn from is the same every time."""
    import screen

    seeds = itertools.count()
    fixed = SimpleNamespace(randbits=lambda _: next(seeds), token_hex=secrets.token_hex)
    monkeypatch.setattr(screen, "secrets", fixed)
    with TestClient(kiosk.create_app(kiosk.open_device(home)), "http://127.0.0.1", headers=SCREEN) as found:
        yield found


def act(client: TestClient, path: str, **body: object) -> dict:
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def like(client: TestClient, place: int = 0) -> dict:
    before = client.get("/api/view").json()
    return act(client, "like", slate=before["slate"], item=before["films"][place]["id"])


def ids(view: dict) -> list[str]:
    return [film["id"] for film in view["films"]]


def test_only_what_a_person_does_moves_the_wall(client):
    first = client.get("/api/view").json()
    assert client.get("/api/view").json() == first
    assert len(set(ids(first))) == 12
    chosen = first["films"][3]
    second = act(client, "like", slate=first["slate"], item=chosen["id"])
    assert chosen["id"] not in ids(second)
    assert len(set(ids(second)) - set(ids(first))) > 1, "more than what took its place"
    assert [film["title"] for film in second["liked"]] == [chosen["title"]]
    assert {film["because"] for film in second["films"]} == {chosen["title"], None}
    third = act(client, "consent", given=True)
    assert third["slate"] != second["slate"]
    assert third["films"] == second["films"], "drawn anew, but nothing was liked"
    assert ids(act(client, "others", slate=third["slate"])) != ids(third)


def test_a_tap_is_logged_with_its_slate_and_its_propensity(client):
    before = client.get("/api/view").json()
    act(client, "like", slate=before["slate"], item=before["films"][1]["id"])
    held = act(client, "export")
    (tap,) = held["interactions"]
    assert (tap["item"], tap["position"], tap["slate"]) == (before["films"][1]["id"], 1, before["slate"])
    assert 0 < tap["propensity"] <= 1
    assert [shown["item"] for shown in held["impressions"]] == ids(before)
    act(client, "others", slate=client.get("/api/view").json()["slate"])
    after = act(client, "export")
    assert (len(after["interactions"]), len(after["impressions"])) == (1, 24)


def test_what_does_not_fit_is_refused_in_a_sentence_and_nothing_is_logged(client):
    old = client.get("/api/view").json()
    new = act(client, "like", slate=old["slate"], item=old["films"][0]["id"])
    stranger = next(one for one in map(str, range(SMALL["items"])) if one not in ids(new))
    for path, body in {
        "like": {"slate": old["slate"], "item": old["films"][1]["id"]},
        "others": {"slate": old["slate"]},
        "reasons": {"item": "none such"},
    }.items():
        answer = client.post(f"/api/{path}", json=body)
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("expected ")
    assert client.post("/api/like", json={"slate": new["slate"], "item": stranger}).status_code == 409
    assert client.get("/api/view").json() == new


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("forget", '{"items": "1"}', "body/items"),
        ("forget", '{"item": 1}', "body/item"),
        ("forget", "", "body"),
        ("forget", "[]", "body"),
        ("consent", '{"given": NaN}', "body/given"),
        ("consent", '{"given": "\\ud800"}', "body/given"),
        ("consent", '{"given": "no"}', "body/given"),
        ("consent", '{"given": true, "\\ud800": 1}', "body"),
        ("like", '{"slate": "s", "item": "1", "liked": true}', "body/liked"),
        ("others", '{"slate": "s", "item": "1"}', "body/item"),
        ("reasons", '{"item": "1", "why": 1}', "body/why"),
        ("adapt", '{"steps": 3}', "body/steps"),
        ("rehearse", '{"round": 1}', "body/round"),
        ("here", '{"there": 1}', "body/there"),
        ("export", '{"format": 1}', "body/format"),
    ],
)
def test_a_body_with_other_fields_is_refused_and_nothing_is_done(path, body, place, client):
    like(client)
    before = act(client, "export")
    answer = client.post(f"/api/{path}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"].startswith(f"expected the fields of this call, got a wrong one at '{place}'")
    assert act(client, "export") == before


def test_reasons_add_up_to_the_score(client):
    view = like(client)
    found = act(client, "reasons", item=view["films"][0]["id"])
    assert sum(found["terms"].values()) == pytest.approx(found["score"], abs=1e-4)
    assert found["film"] == {key: view["films"][0][key] for key in ("id", "title", "year", "genres")}
    assert 0 < found["propensity"] <= 1


def test_without_consent_nothing_is_trained_and_nothing_leaves(client):
    view = like(client)
    assert not view["status"]["consent"]
    assert "consent" in client.post("/api/adapt", json={}).json()["detail"]
    answer = act(client, "rehearse")
    assert (answer["answer"], answer["reason"]) == ({"status": "refused", "values": {}}, "consent")
    assert answer["view"]["status"]["budget"]["spent"] == 0
    assert act(client, "export")["trainings"] == []


def test_fine_tuning_is_free_and_ends_with_consent(client):
    like(client)
    act(client, "consent", given=True)
    status = act(client, "adapt")["status"]
    assert (status["adapted"], status["budget"]["spent"], status["releases"]) == (True, 0, 0)
    assert not act(client, "consent", given=False)["status"]["adapted"]


def test_what_would_leave_is_paid_for_until_the_budget_is_spent(client, kiosk, home):
    like(client)
    act(client, "consent", given=True)
    spent = [0.0]
    while True:
        found = act(client, "rehearse")
        spent.append(found["view"]["status"]["budget"]["spent"])
        if found["answer"]["status"] != "ok":
            break
        values = found["answer"]["values"]
        assert found["bytes"] == 4 * sum(map(len, values.values()))
        assert found["norm"] > 0
        assert len(spent) < 100
    assert (found["answer"], found["reason"]) == ({"status": "refused", "values": {}}, "budget")
    assert spent[:-1] == sorted(set(spent[:-1]))
    assert 0 < spent[-1] == spent[-2] <= found["view"]["status"]["budget"]["epsilon"]
    assert set(values) == {"affinity", "taste"}, "frozen parameters and personal ones stay"
    status = act(client, "forget")["status"]
    assert status["budget"]["spent"] == spent[-1], "forgetting does not refill the ledger"
    assert status["forgotten"] == status["releases"] == len(spent) - 2


def test_a_film_and_then_everything_is_forgotten(client, home):
    like(client)
    second = like(client)
    act(client, "consent", given=True)
    gone, kept = (film["id"] for film in second["liked"])
    after = act(client, "forget", item=gone)
    assert [film["id"] for film in after["liked"]] == [kept]
    act(client, "adapt")
    empty = act(client, "forget")
    assert (empty["liked"], empty["status"]["impressions"], empty["status"]["adapted"]) == ([], 0, False)
    assert {film["because"] for film in empty["films"]} == {None}
    held = act(client, "export")
    assert (held["interactions"], held["impressions"], held["adapted"]) == ([], [], {"served": {}, "personal": {}})


@pytest.mark.parametrize("way", ["everything", "film", "gone"])
def test_a_wall_goes_with_its_person_even_where_bytes_stay_for_now(way, kiosk, home, monkeypatch):
    from fedrec.client import _connection
    from idle import Idle
    from screen import Screen

    monkeypatch.setattr(_connection, "BUSY_SECONDS", 0.2)
    clock = SimpleNamespace(now=1000.0)
    with kiosk.open_device(home) as device, closing(sqlite3.connect(device.store.path, isolation_level=None)) as reader:
        device.store._connection.rows("PRAGMA busy_timeout = 100")
        screen = Screen(device, Idle(60, lambda: clock.now))
        first = screen.show()
        film = first["films"][0]["id"]
        wall = screen.like(first["slate"], film)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM interactions").fetchall()
        clock.now += 61 * (way == "gone")
        with pytest.raises(StoreError, match="the rows are deleted, but another process"):
            screen.leave() if way == "gone" else screen.forget(film if way == "film" else None)
        with pytest.raises(ValueError, match="expected the films that are on the wall, got older ones"):
            screen.others(wall["slate"])
        fresh = screen.show()
        assert ({one["because"] for one in fresh["films"]}, fresh["liked"]) == ({None}, [])
        assert film not in {shown.item for shown in device.store.impressions()}
        if way != "film":
            assert ids(fresh) != ids(wall)


def test_a_kiosk_that_is_opened_again_knows_its_person(kiosk, home):
    with TestClient(kiosk.create_app(kiosk.open_device(home)), "http://127.0.0.1", headers=SCREEN) as one:
        liked = like(one)["liked"]
    with TestClient(kiosk.create_app(kiosk.open_device(home)), "http://127.0.0.1", headers=SCREEN) as other:
        assert other.get("/api/view").json()["liked"] == liked


@pytest.fixture
def waiting(kiosk, home) -> Iterator[SimpleNamespace]:
    """The app with a limit of a minute, and a clock that stands still until it is told."""
    from idle import Idle

    clock = SimpleNamespace(now=1000.0)
    app = kiosk.create_app(kiosk.open_device(home), Idle(60, lambda: clock.now))
    with TestClient(app, "http://127.0.0.1", headers=SCREEN) as client:
        yield SimpleNamespace(client=client, clock=clock)


def test_who_has_gone_is_forgotten_and_consent_is_the_next_ones(waiting):
    client, clock = waiting.client, waiting.clock
    like(client)
    act(client, "consent", given=True)
    clock.now += 50
    assert act(client, "here") == {"left": 60.0}
    clock.now += 50
    before = client.get("/api/view").json()
    assert (before["idle"], len(before["liked"])) == ({"left": 10.0, "seconds": 60}, 1)
    time.sleep(1.5)  # long enough for a look at the clock
    assert client.get("/api/view").json() == before, "looking is no touch, and nobody has gone yet"
    clock.now += 11
    for _ in range(600):
        after = client.get("/api/view").json()
        if after["slate"] != before["slate"]:
            break
        time.sleep(0.1)
    status = after["status"]
    assert (after["liked"], status["impressions"], status["consent"]) == ([], 0, False)
    assert after["idle"] == {"left": 60.0, "seconds": 60}
    held = act(client, "export")
    assert (held["interactions"], held["impressions"], held["profile"]) == ([], [], {})


def test_a_kiosk_without_a_limit_forgets_nobody(client, kiosk, home):
    from screen import Screen

    like(client)
    assert client.get("/api/view").json()["idle"] is None
    assert act(client, "here") == {"left": None}
    with kiosk.open_device(home) as device:
        assert not Screen(device).leave()
    assert len(client.get("/api/view").json()["liked"]) == 1


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon"])
def test_minutes_are_minutes(text, kiosk, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", "--forget-after", text])
    with pytest.raises(SystemExit, match="2"):
        kiosk.main()
    assert f"expected minutes >= 0, got '{text}'" in capsys.readouterr().err


def test_pages_of_other_origins_get_nothing(client):
    refused = client.post("/api/forget", json={}, headers={"X-Kiosk": "0"})
    assert refused.status_code == 403
    rebound = client.get("/api/view", headers={"Host": "kiosk.example"})
    assert rebound.status_code == 400
    answer = client.get("/api/view", headers={"Origin": "https://kiosk.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert answer.headers["cache-control"] == "no-store"
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404
    assert client.get("/static/../app.py").status_code == 404


def test_the_page_asks_nobody_else(client):
    for path in ("/", *(f"/static/{file.name}" for file in (KIOSK / "static").iterdir())):
        answer = client.get(path)
        assert answer.status_code == 200
        assert [
            url for url in re.findall(r"\w+://[^\s\"'`]+", answer.text) if url != "http://www.w3.org/2000/svg"
        ] == []


def test_a_bundle_that_was_altered_opens_no_kiosk(kiosk, home):
    content = bytearray((home / "policy.bundle").read_bytes())
    content[-1] ^= 1
    (home / "policy.bundle").write_bytes(content)
    with pytest.raises(BundleError, match="as it was signed"):
        kiosk.open_device(home)
    assert sorted(path.name for path in home.iterdir()) == ["policy.bundle", "policy.pub"], "the private key is gone"


def test_invented_titles_differ_and_are_the_same_every_time(kiosk):
    from films import name_and_year, titles

    genres = [["Comedy"], ["Horror", "Comedy"], []] * 200
    assert titles(genres) == titles(genres) != titles(genres, seed=1)
    assert len(set(titles(genres))) == 600
    assert name_and_year("Usual Suspects, The (1995)") == ("The Usual Suspects", "1995")
    assert name_and_year("I, Robot") == ("I, Robot", "")


@contextmanager
def running(home: Path, output: Path, *options: str) -> Iterator[str]:
    """The kiosk in a process of its own, on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(KIOSK / "app.py"), "--home", str(home), "--port", str(port), *options]
    with output.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, cwd=home) as process:
        try:
            for _ in range(600):
                assert process.poll() is None, output.read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@contextmanager
def browsing(profile: Path) -> Iterator[object]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver: on Debian, apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra fedrec[test]")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_page_load_timeout(60)
    try:
        yield browser
    finally:
        browser.quit()


@pytest.mark.integration
def test_a_person_goes_through_the_page(home, tmp_path):
    output = tmp_path / "output.txt"
    with browsing(tmp_path / "profile") as browser, running(home, output) as address:
        walk(browser, address)
        own = urllib.request.Request(f"{address}/api/export", b"{}", SCREEN | {"Content-Type": "application/json"})
        with urllib.request.urlopen(own, timeout=30) as answer:
            held = json.load(answer)
    assert (held["interactions"], held["consent"]["given"], len(held["trainings"])) == ([], True, 1)
    (line,) = output.read_text().splitlines()
    assert line.startswith(f"the kiosk is open: {address}"), "nothing that was tapped is told"


@pytest.mark.integration
def test_a_wall_that_is_left_alone_becomes_a_strangers(home, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    with browsing(tmp_path / "profile") as browser, running(home, tmp_path / "out", "--forget-after", "0.2") as address:
        browser.get(address)
        find = lambda selector: browser.find_element("css selector", selector)  # noqa: E731
        until = lambda condition: WebDriverWait(browser, 60).until(lambda _: condition())  # noqa: E731
        until(lambda: browser.find_elements("css selector", ".film"))
        find(".switch").click()
        until(lambda: find("#rehearse").is_enabled())
        find(".poster").click()
        until(lambda: find("#count").text == "1")
        assert "Left alone for 12 seconds" in find("#idle").text
        until(lambda: "everything is forgotten" in find("#hint").text)
        assert (find("#count").text, browser.find_elements("css selector", ".because")) == ("0", [])
        assert not find("#consent").is_selected()
        assert [entry["message"] for entry in browser.get_log("browser")] == []


def walk(browser, address: str) -> None:
    """Tap a film, read a reason, agree, see what would leave, open the meter, forget."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def one(selector: str):
        return browser.find_element("css selector", selector)

    def every(selector: str) -> list:
        return browser.find_elements("css selector", selector)

    def until(condition) -> None:
        WebDriverWait(browser, 60).until(lambda _: condition())

    def wall() -> list[str]:
        return [film.get_attribute("data-id") for film in every(".film")]

    def dialog() -> str:
        until(lambda: one("#dialog").get_attribute("open") and one("#dialog-title").text)
        return one("#dialog").text

    browser.get(address)
    until(lambda: len(wall()) == 12)
    before, title = wall(), one(".film .name").text
    one(".poster").click()
    until(lambda: one("#count").text == "1")
    until(lambda: one(".film .name").text)
    fresh = [film.get_attribute("data-id") for film in every(".film.new")]
    assert fresh
    assert set(fresh) == set(wall()) - set(before)
    assert before[0] not in wall()
    assert f"{len(fresh)} of 12 films are new" in one("#said").get_attribute("textContent")
    assert title in {because.text for because in every(".because b")}

    every(".film:has(.because) .why")[0].click()
    assert f"Because you liked\n{title}" in dialog()
    one("dialog").send_keys(Keys.ESCAPE)
    until(lambda: not one("#dialog").get_attribute("open"))

    assert not one("#rehearse").is_enabled()
    one(".switch").click()
    until(lambda: one("#rehearse").is_enabled())
    one("#rehearse").click()
    assert "This is all that would leave" in dialog()
    one(".close").click()

    assert not one("#terms").is_displayed()
    one("#meter summary").click()
    until(lambda: one("#terms").is_displayed())
    spent = float(one("#bar").get_attribute("aria-valuenow"))
    assert 0 < spent < float(one("#bar").get_attribute("aria-valuemax")) == 8
    assert "interaction" in one("#terms").text
    assert float(one("#spent").text.split()[1]) == pytest.approx(spent, abs=0.006)

    every(".poster")[2].send_keys(Keys.ENTER)
    until(lambda: one("#count").text == "2")
    longer = "arguments[0].textContent = 'A long title '.repeat(9); const all = document.querySelector('aside');"
    assert browser.execute_script(f"{longer} return all.scrollWidth - all.clientWidth", one(".liked .what")) == 0
    one("#forget").click()
    assert "2 taps" in dialog()
    one("#forget-everything").click()
    until(lambda: one("#count").text == "0")
    assert every(".liked li") == every(".because") == []
    assert one("#nothing").is_displayed()
    assert float(one("#bar").get_attribute("aria-valuenow")) == spent

    asked = browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert len(asked) > 8
    assert [url for url in asked if not url.startswith(address)] == []
    assert [entry["message"] for entry in browser.get_log("browser")] == []
