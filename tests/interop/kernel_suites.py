"""Our suites in the words of the kernel."""

import dataclasses

AES_BITS = (128, 192, 256)


@dataclasses.dataclass(frozen=True)
class Suite:
    """`esp`: our name. Either `aead` or `auth` and `enc`: the kernel's names. `icv`: in bits."""

    esp: str
    icv: int
    aead: str = ""
    auth: str = ""
    enc: str = ""

    def words(self, keys, direction):
        """What `ip xfrm state add` wants to hear. `direction`: as in the key file `keys`."""
        keymat = getattr(keys, f"keymat_{direction}").hex()
        if self.aead:
            return f"aead {self.aead} 0x{keymat} {self.icv}"
        auth = getattr(keys, f"auth_{direction}").hex()
        key = f"0x{keymat}" if keymat else "''"
        return f"auth-trunc {self.auth} 0x{auth} {self.icv} enc {self.enc} {key}"


def _suites():
    for bits in AES_BITS:
        yield Suite(f"aes_gcm{bits}", 128, "rfc4106(gcm(aes))")
        for icv in (12, 8):
            yield Suite(f"aes_gcm_{icv}_{bits}", icv * 8, "rfc4106(gcm(aes))")
        for icv in (16, 12, 8):
            yield Suite(f"aes_ccm_{icv}_{bits}", icv * 8, "rfc4309(ccm(aes))")
        yield Suite(f"null_auth_aes_gmac_{bits}", 128, "rfc4543(gcm(aes))")
    yield Suite("chacha20_poly1305", 128, "rfc7539esp(chacha20,poly1305)")
    for sha, icv in (("sha1", 96), ("sha256", 128), ("sha384", 192), ("sha512", 256)):
        for bits in AES_BITS:
            yield Suite(f"aes{bits}-{sha}", icv, auth=f"hmac({sha})", enc="cbc(aes)")
        yield Suite(f"null-{sha}", icv, auth=f"hmac({sha})", enc="ecb(cipher_null)")


SUITES = list(_suites())
SUITE = {suite.esp: suite for suite in SUITES}
