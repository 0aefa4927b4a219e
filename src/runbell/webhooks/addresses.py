"""Which URLs and which addresses a webhook may be sent to.

A service that POSTs to any URL that a client names is a way into its own network (server-side
request forgery). The syntax of a URL is looked at here, when it is registered; its addresses are
looked at by `is_public`, when it is registered and again whenever one is dialled, since a name can
mean another address by then.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final
from urllib.parse import urlsplit

from runbell.errors import AddressRefused

__all__ = ["MAX_URL", "Target", "check_url", "is_public"]

MAX_URL: Final = 2048
"""Characters of a URL; longer ones do not pass common proxies."""

NOT_PUBLIC_4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # "this network" (RFC 791): Linux dials itself
            "10.0.0.0/8",  # private (RFC 1918)
            "100.64.0.0/10",  # shared by carriers (RFC 6598), and by clouds: 100.100.100.200
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's own services, from inside a machine of theirs
            "169.254.0.0/16",  # link-local, and the metadata of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments (RFC 6890); Oracle's metadata: 192.0.0.192
            "192.0.2.0/24",  # documentation (RFC 5737)
            "192.31.196.0/24",  # AS112 (RFC 7535): answers locally
            "192.52.193.0/24",  # AMT (RFC 7450)
            "192.88.99.0/24",  # 6to4 relays (RFC 7526)
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112 (RFC 7534)
            "198.18.0.0/15",  # benchmarks (RFC 2544)
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
"""The special-purpose registry of IANA for IPv4 (RFC 6890), and what clouds keep to themselves."""

GLOBAL_UNICAST_6: Final = IPv6Network("2000::/3")
"""All that IANA has given out for IPv6; whatever is outside of it is no public address."""

NAT64: Final = IPv6Network("64:ff9b::/96")
"""The well-known prefix under which a translator reaches IPv4."""

NOT_PUBLIC_6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments (RFC 2928), with Teredo (2001::/32) and ORCHID
            "2001:db8::/32",  # documentation (RFC 3849)
            "2002::/16",  # 6to4 (RFC 3056): an IPv4 address in disguise
            "2620:4f:8000::/48",  # AS112 (RFC 7534)
            "3fff::/20",  # documentation (RFC 9637)
        ),
    )
)
"""The special-purpose registry of IANA for IPv6, as far as it is inside of 2000::/3."""

_NUMBER = re.compile(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+))*", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_AMBIGUOUS = frozenset("\u00df\u03c2\u200c\u200d")
"""Letters by which IDNA 2003, which Python has, and IDNA 2008 mean different names."""

_LOCAL = ".local", ".localhost", ".internal", ".localdomain"


def is_public(address: IPv4Address | IPv6Address | str) -> bool:
    """Whether an address belongs to the public internet, and is one machine's there.

    The standard library's `is_global` is wrong about several kinds in Python 3.11 (translated and
    tunnelled addresses, multicast, site-local); this is a list of its own. An IPv6 address that
    carries one of IPv4 is not public, since some router would unpack it; the exception is NAT64
    (RFC 6052), without which networks that have IPv6 alone would reach nobody.

    Raises:
        ValueError: the text is no address.
    """
    ip = ipaddress.ip_address(address) if isinstance(address, str) else address
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in NOT_PUBLIC_4)
    if ip in NAT64:
        return is_public(IPv4Address(ip.packed[-4:]))
    # With a scope (`fe80::1%eth0`), it is an address of some link.
    if ip.scope_id is not None or ip not in GLOBAL_UNICAST_6:
        return False
    return not any(ip in network for network in NOT_PUBLIC_6)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads, as far as its text tells.

    Attributes:
        url: the URL as it is dialled: scheme and host in lower case, a name outside of ASCII
            as its IDNA form.
        scheme: `https`, or `http`.
        host: a name, or an address without brackets.
        port: the one that is dialled.
        address: the host, where it is an address.
    """

    url: str
    scheme: str
    host: str
    port: int
    address: IPv4Address | IPv6Address | None


def check_url(url: str, *, allow_private: bool = False) -> Target:
    """Check the text of a URL that webhooks are to be sent to. Nothing is resolved or dialled.

    Args:
        allow_private: `http` and addresses that are not public are allowed too.

    Raises:
        AddressRefused: it is not one; the message says what to change, without the URL, which may
            hold a secret.
    """
    _check_characters(url)
    try:
        parts = urlsplit(url)
        port, name = parts.port, parts.hostname
    except ValueError:
        raise AddressRefused("the URL's host or port is not valid") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_private):
        raise AddressRefused(
            "the URL has to begin with https:// (or http://)"
            if allow_private
            else "the URL has to begin with https://: webhooks travel encrypted; for a receiver on "
            "your own machine, see --allow-private-webhooks or `runbell listen`"
        )
    if "@" in parts.netloc:
        raise AddressRefused(
            "the URL has a user name or password: take it out, and verify the signature instead"
        )
    if "#" in url:
        raise AddressRefused("the URL has a fragment (#…), which no server sees: take it out")
    if not name:
        raise AddressRefused("the URL has no host")
    if port == 0 or parts.netloc.endswith(":"):
        raise AddressRefused(
            "the URL's port is not valid: it has to be 1 to 65535, or left out with its colon"
        )
    host, address = _host(name, parts.netloc)
    if address is not None and not allow_private and not is_public(address):
        raise _private("the URL's address is not public")
    if address is None and not allow_private and _is_local_name(host):
        raise _private("the URL's host is a name of a local network")
    shown = f"[{host}]" if isinstance(address, IPv6Address) else host
    netloc = shown if port is None else f"{shown}:{port}"
    default = 443 if parts.scheme == "https" else 80
    clean = parts._replace(netloc=netloc, path=parts.path or "/").geturl()
    return Target(clean, parts.scheme, host, port or default, address)


def _check_characters(url: str) -> None:
    if not url or len(url) > MAX_URL:
        raise AddressRefused(f"the URL has to have 1 to {MAX_URL} characters")
    if any(character <= " " or character == "\x7f" for character in url) or "\\" in url:
        raise AddressRefused(
            "the URL holds spaces, control characters or backslashes: write them as %20 and so on"
        )
    _, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not rest[len(authority) :].isascii():
        raise AddressRefused("the URL's path holds letters outside of ASCII: write them as %…")
    if "%" in authority:
        raise AddressRefused("the URL's host holds a %: write the host plainly")


def _host(name: str, netloc: str) -> tuple[str, IPv4Address | IPv6Address | None]:
    """The host as it is dialled, and the address that it is, if it is one."""
    if "[" in netloc:
        try:
            address = IPv6Address(name)
        except ValueError:
            raise AddressRefused("the URL's host in [] is not an IPv6 address") from None
        return str(address), address
    host = _ascii(name)
    if host.endswith("."):
        raise AddressRefused("the URL's host ends in a full stop: take it away")
    if _NUMBER.fullmatch(host):
        # Some resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1.
        try:
            return host, IPv4Address(host)
        except ValueError:
            raise AddressRefused(
                "the URL's host is a number, but no address of the form 203.0.113.7"
            ) from None
    labels = host.split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
        raise AddressRefused("the URL's host is not a valid name")
    return host, None


def _ascii(name: str) -> str:
    if name.isascii():
        return name.lower()
    try:
        if not _AMBIGUOUS.isdisjoint(name):
            raise UnicodeError
        return name.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise AddressRefused(
            "the URL's host is not a valid international name: write its xn--… form"
        ) from None


def _is_local_name(host: str) -> bool:
    return "." not in host or host.endswith(_LOCAL)


def _private(what: str) -> AddressRefused:
    return AddressRefused(
        f"{what}: webhooks go to the public internet; for local receivers start the service "
        "with --allow-private-webhooks",
        "private",
    )
