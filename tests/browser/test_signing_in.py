"""On a Space a visitor signs in to the Hub in place of typing a token: the way there and back, and a push after it."""

from playwright.sync_api import expect

from tests.helpers.space import free_port

from .driving import progress, run_id, serving, start_text, visit


def test_a_visitor_signs_in_and_pushes_the_run_that_was_on_the_page(browser, tiny_prior, tmp_path, hub):
    space, port = hub.sign_in.environment(hub.address), free_port()
    with serving(tmp_path, tiny_prior, port, hub.address, **space):
        page = visit(browser, f"http://127.0.0.1:{port}")
        start_text(page, 10)
        expect(progress(page)).to_contain_text("Finished 10 steps")
        made = run_id(page)
        page.locator("#hub-form button").first.click()
        assert not page.locator("#hub-token").is_visible(), "no token is asked for"
        page.locator("#hub-repo input, #hub-repo textarea").first.fill("me/signed-in")
        page.locator("#hub-push").click()
        expect(page.get_by_text("Sign in to Hugging Face first").first).to_be_visible()
        # There and back again, to another page with the same address; the run is on it as it was.
        page.evaluate("document.signedOut = true")
        page.locator("#hub-login").click()
        page.wait_for_function("!document.signedOut")
        assert run_id(page) == made
        expect(progress(page)).to_contain_text("Finished 10 steps")
        page.locator("#hub-form button").first.click()
        expect(page.locator("#hub-login")).to_contain_text("Logout (me)")
        page.locator("#hub-repo input, #hub-repo textarea").first.fill("me/signed-in")
        page.locator("#hub-push").click()
        expect(page.locator("#hub-result")).to_contain_text("/me/signed-in")
        page.context.close()
    assert hub.repo("me/signed-in").files["mesh.glb"][:4] == b"glTF"
    assert "contribute-repos" in hub.sign_in.asked.split()
    (token,) = [token for token in hub.tokens if token.startswith("hf_oauth_")]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path
