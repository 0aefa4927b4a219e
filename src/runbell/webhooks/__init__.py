"""How is it signed, and where may it go. Pure; the standard library alone.

secrets    signing secrets and public keys, as they are written
signing    sign and verify, by Standard Webhooks 1.0.0
addresses  which URLs and addresses a webhook may be sent to
"""

from runbell.webhooks.addresses import Target, check_url, is_public
from runbell.webhooks.secrets import PublicKey, Secret
from runbell.webhooks.signing import Verified, headers_for, sign, verify

__all__ = [
    "PublicKey",
    "Secret",
    "Target",
    "Verified",
    "check_url",
    "headers_for",
    "is_public",
    "sign",
    "verify",
]
