"""Where a webhook may go: no address and no way of writing one leads into a private network."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.errors import AddressRefused
from runbell.webhooks import check_url, is_public

NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1
    127.255.255.254 168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1
    172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1
    198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1
    64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::a00:1 64:ff9b:1::1 100::1 100:0:0:1::1
    2001::1 2001:0:7f00:1::1 2001:2::1 2001:db8::1 2001:10::1 2001:20::1 2002:7f00:1::1
    2002:808:808::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 fdff::1 fe80::1 febf::1
    fe80::1%eth0 2606:4700::1111%eth0 fec0::1 feff::1 ff02::1 ff0e::1
    ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
"""

PUBLIC = """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 52.95.110.1 100.63.255.255 100.128.0.1 126.255.255.255
    128.0.0.1 168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.1 172.15.255.255 172.32.0.1
    192.0.1.1 192.167.255.255 192.169.0.1 198.17.255.255 198.20.0.1 223.255.255.255
    2001:200::1 2001:4860:4860::8888 2003::1 2400:cb00::1 2606:4700::1111 2a00:1450::1
    64:ff9b::808:808
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public(address: str) -> None:
    assert is_public(address)


ADDRESSES = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address) | st.integers(0, 2**128 - 1).map(
    ipaddress.IPv6Address
)


@settings(deadline=None, derandomize=True)
@given(ADDRESSES)
def test_what_the_standard_library_refuses_is_refused(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """Its list is shorter than ours, and no address of it is missing in ours."""
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        assert not is_public(address)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_no_disguise_makes_an_address_public(number: int) -> None:
    four = ipaddress.IPv4Address(number)
    for disguise in (
        number,  # IPv4-compatible
        0xFFFF << 32 | number,  # mapped
        0xFFFF << 48 | number,  # translated
        0x2002 << 112 | number << 80 | 1,  # 6to4
        0x20010000 << 96 | (number ^ 0xFFFFFFFF),  # Teredo
        0x0064FF9B0001 << 80 | number,  # NAT64 of a local network
    ):
        assert not is_public(ipaddress.IPv6Address(disguise))
    assert is_public(ipaddress.IPv6Address(0x0064FF9B << 96 | number)) == is_public(four)


def test_what_is_no_address_is_no_answer() -> None:
    with pytest.raises(ValueError):
        is_public("example.com")


@pytest.mark.parametrize(
    ("url", "dialled"),
    [
        ("https://example.com", "https://example.com/"),
        ("https://example.com/hooks", "https://example.com/hooks"),
        ("HTTPS://EXAMPLE.com:8443/Hooks?a=%20b&c", "https://example.com:8443/Hooks?a=%20b&c"),
        ("https://example.com?a=b", "https://example.com/?a=b"),
        ("https://exämple.com/", "https://xn--exmple-cua.com/"),
        ("https://xn--exmple-cua.com/", "https://xn--exmple-cua.com/"),
        ("https://a_b.example.com/", "https://a_b.example.com/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700::1111]:444/", "https://[2606:4700::1111]:444/"),
        ("https://example.com/a@b", "https://example.com/a@b"),
        ("https://example.com/?u=http://127.0.0.1", "https://example.com/?u=http://127.0.0.1"),
    ],
)
def test_a_url_that_is_one(url: str, dialled: str) -> None:
    target = check_url(url)
    assert target.url == dialled
    assert target.scheme == "https"
    # A second look finds what the first one left.
    assert check_url(target.url) == target


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "1 to 2048 characters"),
        (f"https://example.com/{'x' * 2048}", "1 to 2048 characters"),
        ("example.com/hooks", "begin with https://"),
        ("//example.com/hooks", "begin with https://"),
        ("http://example.com/", "begin with https://"),
        ("ftp://example.com/", "begin with https://"),
        ("file:///etc/passwd", "begin with https://"),
        ("javascript:alert(1)", "begin with https://"),
        ("https:", "no host"),
        ("https://", "no host"),
        ("https:///hooks", "no host"),
        ("https:example.com", "no host"),
        ("https://:443/", "no host"),
        ("https://user@example.com/", "user name or password"),
        ("https://user:pass@example.com/", "user name or password"),
        ("https://@example.com/", "user name or password"),
        ("https://example.com@127.0.0.1/", "user name or password"),
        ("https://example.com/#top", "fragment"),
        ("https://example.com/#", "fragment"),
        ("https://example.com./", "ends in a full stop"),
        ("https://example.com:0/", "port"),
        ("https://example.com:/", "port"),
        ("https://example.com:65536/", "port"),
        ("https://example.com:-1/", "port"),
        ("https://example.com:8o/", "port"),
        ("https://example.com:\uff18\uff10/", "port"),
        ("https://2130706433/", "is a number"),
        ("https://0x7f000001/", "is a number"),
        ("https://0x7f.1/", "is a number"),
        ("https://0177.0.0.1/", "is a number"),
        ("https://127.1/", "is a number"),
        ("https://1.2.3.4.5/", "is a number"),
        ("https://\uff11\uff12\uff17.1/", "is a number"),
        ("https://foo.0x7f/", "not a valid name"),
        ("https://example.123/", "not a valid name"),
        ("https://-example.com/", "not a valid name"),
        ("https://exam ple.com/", "spaces"),
        ("https://example.com/a b", "spaces"),
        (" https://example.com/", "spaces"),
        ("https://example.com/\n", "spaces"),
        ("https://example.com/\r\nX: y", "spaces"),
        ("https://exa\tmple.com/", "spaces"),
        ("https://example.com\\@127.0.0.1/", "backslashes"),
        ("https://example.com/\x7f", "control characters"),
        ("https://example.com/ü", "outside of ASCII"),
        ("https://%31%32%37.0.0.1/", "holds a %"),
        ("https://[fe80::1%25eth0]/", "holds a %"),
        ("https://[::1/", "not valid"),
        ("https://[example.com]/", "not"),
        (f"https://{'a' * 64}.com/", "not a valid name"),
        (f"https://{'a.' * 130}com/", "not a valid name"),
        ("https://a..example.com/", "not a valid name"),
        ("https://ex,ample.com/", "not a valid name"),
        ("https://fa\u00df.example/", "xn--"),
        ("https://\ud800.example/", "xn--"),
    ],
)
def test_a_url_that_is_none_says_what_to_change(url: str, complaint: str) -> None:
    for allow_private in (False, True):
        if allow_private and url.startswith("http://"):
            continue
        with pytest.raises(AddressRefused) as refused:
            check_url(url, allow_private=allow_private)
        assert complaint in str(refused.value)
        assert refused.value.reason == "url"
        assert "pass@" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://127\u30020\u30020\u30021/",
        "https://10.1.2.3:8443/x",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://localhost/",
        "https://LOCALHOST:8443/",
        "https://intranet/",
        "https://printer.local/",
        "https://metadata.google.internal/",
        "https://a.localhost/",
    ],
)
def test_a_private_host_has_to_be_allowed(url: str) -> None:
    with pytest.raises(AddressRefused, match="--allow-private-webhooks") as refused:
        check_url(url)
    assert refused.value.reason == "private"
    assert check_url(url, allow_private=True).port in (443, 8443)


def test_http_is_for_those_who_allow_private_receivers() -> None:
    target = check_url("http://localhost:3000/hooks", allow_private=True)
    assert (target.url, target.port) == ("http://localhost:3000/hooks", 3000)
    assert check_url("http://localhost/", allow_private=True).port == 80


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=60).map(lambda text: f"https://{text}"), st.booleans())
def test_any_text_is_a_url_or_refused(url: str, allow_private: bool) -> None:
    try:
        target = check_url(url, allow_private=allow_private)
    except AddressRefused:
        return
    assert target.url.isascii()
    assert check_url(target.url, allow_private=allow_private) == target
