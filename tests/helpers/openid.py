"""The Hub's sign-in on this machine: OpenID Connect as a Space uses it, for a visitor who agrees at once."""

import base64
import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey


SECONDS = 8 * 3600  # that a token is good for


@dataclass
class SignIn:
    """An app that visitors may sign in to.

    Args:
        client_id, client_secret: Of the app.
        user: Who signs in.
        asked: Scopes that the app asked for.
    """

    client_id: str = "the-space"
    client_secret: str = field(default_factory=secrets.token_hex)
    user: str = "me"
    asked: str = ""

    def __post_init__(self):
        self._key = RSAKey.generate_key(2048, {"kid": "1", "alg": "RS256", "use": "sig"})
        self._codes: dict[str, dict[str, str]] = {}

    def environment(self, address: str) -> dict[str, str]:
        """What a Space with `hf_oauth` finds in its environment."""
        return {
            "SYSTEM": "spaces", "SPACE_ID": "me/space",
            "OAUTH_CLIENT_ID": self.client_id, "OAUTH_CLIENT_SECRET": self.client_secret,
            "OAUTH_SCOPES": "openid profile contribute-repos", "OPENID_PROVIDER_URL": address,
        }  # fmt: skip

    @staticmethod
    def metadata(address: str) -> dict:
        return {
            "issuer": address, "authorization_endpoint": f"{address}/oauth/authorize",
            "token_endpoint": f"{address}/oauth/token", "jwks_uri": f"{address}/oauth/jwks",
            "id_token_signing_alg_values_supported": ["RS256"], "response_types_supported": ["code"],
        }  # fmt: skip

    def keys(self) -> dict:
        return {"keys": [self._key.as_dict(private=False)]}

    def authorize(self, path: str) -> str | None:
        """Where a visitor who agrees is sent back to; `None` for another app."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        if asked.get("client_id") != self.client_id or asked.get("response_type") != "code":
            return None
        self.asked = asked["scope"]
        self._codes[code := secrets.token_hex()] = asked
        mark = "&" if "?" in asked["redirect_uri"] else "?"
        return asked["redirect_uri"] + mark + urlencode({"code": code, "state": asked["state"]})

    def token(self, address: str, authorization: str, body: bytes) -> dict | None:
        """A token for a code, once; `None` for what is not this app's."""
        expected = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
        sent = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        asked = self._codes.pop(sent.get("code", ""), None)
        if authorization != f"Basic {expected}" or asked is None or sent["redirect_uri"] != asked["redirect_uri"]:
            return None
        now = int(time.time())
        claims = {
            "iss": address, "aud": self.client_id, "sub": "1", "iat": now, "exp": now + SECONDS,
            "nonce": asked.get("nonce"), "name": "Me", "preferred_username": self.user,
            "profile": f"{address}/{self.user}", "picture": f"{address}/{self.user}.png",
        }  # fmt: skip
        return {
            "access_token": f"hf_oauth_{secrets.token_hex()}", "token_type": "bearer", "expires_in": SECONDS,
            "scope": asked["scope"], "id_token": jwt.encode({"alg": "RS256", "kid": "1"}, claims, self._key),
        }  # fmt: skip
