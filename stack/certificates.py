"""The local certificate authority: signs the API server, the router and the databases, as CERN's signs the real ones.

Everything lies in `State.pki`. `cryptography` is imported only when something must be signed, so that a start with
certificates in place does not pay for it.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stack.state import State

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

LIFE = dt.timedelta(days=825)
"""How long certificates are valid: the longest that browsers accept. A month before the end they are made anew."""


def ensure_ca(state: State) -> Path:
    """Return the CA's certificate, made on the first call (`pki/ca.crt`, `pki/ca.key`)."""
    if not _fresh(state, "ca", []):
        from cryptography import x509

        key = _new_key()
        name = _name("certhelper guide, local stack")
        builder = _certificate(name, name, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        _keep(state, "ca", _sign(builder, key), key, [])
    return state.ca


def issue(state: State, name: str, hosts: list[str], *, organization: str = "") -> tuple[Path, Path]:
    """Return paths of a certificate for `hosts` (names and addresses) and of its key, signed by the local CA.

    Beside them lies `pki/NAME.pem`, both in one file as HAProxy wants it. A certificate that is there and covers the
    same hosts is kept. It is good for servers and clients; `organization` is the group of a client in Kubernetes.
    """
    certificate, key_path = state.path("pki", f"{name}.crt"), state.path("pki", f"{name}.key")
    ensure_ca(state)
    if _fresh(state, name, hosts):
        return certificate, key_path
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = x509.load_pem_x509_certificate(state.ca.read_bytes())
    signer: Any = serialization.load_pem_private_key(state.path("pki", "ca.key").read_bytes(), None)
    key = _new_key()
    builder = _certificate(_name(name, organization), issuer.subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    _keep(state, name, _sign(builder, signer), key, hosts)
    return certificate, key_path


def signing_key(state: State) -> Path:
    """Return the private key that signs the tokens of service accounts, made on the first call."""
    path = state.path("pki", "service-accounts.key")
    if not path.exists():
        state.write("pki/service-accounts.key", _pem(_new_key()))
    return path


def _fresh(state: State, name: str, hosts: list[str]) -> bool:
    """Tell whether a certificate is there for these hosts, signed by today's CA and not about to expire."""
    about = state.path("pki", f"{name}.json")
    if not about.exists():
        return False
    kept = json.loads(about.read_text())
    renew = dt.datetime.fromisoformat(kept["expires"]) - dt.timedelta(days=30)
    authority = state.path("pki", "ca.json")
    newer = name != "ca" and authority.exists() and authority.stat().st_mtime_ns > about.stat().st_mtime_ns
    return bool(kept["hosts"] == hosts and renew > dt.datetime.now(dt.UTC) and not newer)


def _keep(state: State, name: str, certificate: str, key: ec.EllipticCurvePrivateKey, hosts: list[str]) -> None:
    """Write certificate, key and both; the note about them comes last, so that half of them never counts."""
    private = _pem(key)
    state.write(f"pki/{name}.key", private)
    state.write(f"pki/{name}.crt", certificate)
    state.write(f"pki/{name}.pem", certificate + private)
    expires = dt.datetime.now(dt.UTC) + LIFE
    state.write_json(f"pki/{name}.json", {"hosts": hosts, "expires": expires.isoformat()})


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives import serialization

    # The traditional form: HAProxy, Go and PostgreSQL all read it.
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                             serialization.NoEncryption()).decode()


def _name(common: str, organization: str = "") -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(**wanted: bool) -> x509.KeyUsage:
    from cryptography import x509

    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names})


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    from cryptography import x509

    now = dt.datetime.now(dt.UTC)
    # An hour back: a clock that is set back a little must not make a new certificate invalid.
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + LIFE))


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives import hashes, serialization

    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
