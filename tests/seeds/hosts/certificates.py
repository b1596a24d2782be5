"""A certificate authority that lives as long as the test."""

import datetime
import os
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from cryptography.x509.oid import NameOID

PASSWORD = b"not-a-secret"


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "seeds"),
                      x509.NameAttribute(NameOID.COMMON_NAME, text)])  # fmt: skip


class Authority:
    def __init__(self):
        self.key = rsa.generate_private_key(65537, 2048)
        self.certificate = self._sign("authority", self.key.public_key(), _name("authority"), ca=True)

    def _sign(self, name, public, issuer, ca=False):
        now = datetime.datetime.utcnow()
        made = (
            x509.CertificateBuilder()
            .subject_name(_name(name)).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=10))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip
        if not ca:
            made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return made.sign(self.key, hashes.SHA256())

    def issue(self, host, nickname):
        """A certificate of its own for a libreswan host, in its database, as `ipsec import` does it."""
        key = rsa.generate_private_key(65537, 2048)
        certificate = self._sign(f"{host.name}.example", key.public_key(), _name("authority"))
        bundle = pkcs12.serialize_key_and_certificates(
            nickname.encode(), key, certificate, [self.certificate], BestAvailableEncryption(PASSWORD))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "bundle.p12")
            with open(path, "wb") as file:
                file.write(bundle)
            host.run("pk12util", "-i", path, "-d", "sql:/var/lib/ipsec/nss", "-W", PASSWORD.decode())
        host.run("sh", "-c", "ipsec checknss --settrusts || true")
