from hostel.images.sources import DEFAULT, Source, configured, proxies

DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://mirror.example/debian-security/
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://mirror.example/off
Suites: bookworm
Components: main

Types: deb
URIs: https://deb.nodesource.com/node_20.x
Suites: nodistro
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 xyz
"""

ONE_LINE = """\
# deb http://mirror.example/commented bookworm main
deb-src http://mirror.example/source bookworm main
deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] file:/srv/debian bookworm main # why
deb [ arch=arm64 ] http://mirror.example/arm bookworm main
deb [signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/debian bookworm main
deb https://download.docker.com/linux/debian bookworm stable
deb cdrom:[Debian]/ bookworm main
deb http://mirror.example/flat ./
"""


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_deb822(tmp_path):
    write(tmp_path, "sources.list.d/debian.sources", DEB822)
    assert configured(tmp_path) == (
        Source("http://mirror.example/debian", "bookworm"),
        Source("http://mirror.example/debian", "bookworm-updates"),
        Source("http://mirror.example/debian-security", "bookworm-security"),
    )


def test_one_line_style(tmp_path):
    write(tmp_path, "sources.list", ONE_LINE)
    write(tmp_path, "sources.list.d/again.list", ONE_LINE)
    write(tmp_path, "sources.list.d/off.list.disabled", "deb http://mirror.example/off bookworm main\n")
    assert configured(tmp_path) == (Source("file:/srv/debian", "bookworm"),)


def test_another_distribution_gets_debians_own(tmp_path):
    assert configured(tmp_path) == DEFAULT
    write(tmp_path, "sources.list", "deb http://archive.ubuntu.com/ubuntu jammy main\n")
    assert configured(tmp_path) == DEFAULT
    write(tmp_path, "sources.list", "deb http://mirror.example/debian bookworm-updates main\n")
    assert configured(tmp_path) == DEFAULT
    assert all(source.mirror.startswith("https://") for source in DEFAULT)


def test_apts_proxy_comes_before_the_environments(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://env:1")
    monkeypatch.setenv("https_proxy", "http://env:2")
    assert proxies({})["http"] == "http://env:1"
    found = proxies({"acquire::http::proxy": "http://apt:3", "acquire::https::proxy": "DIRECT"})
    assert found["http"] == "http://apt:3" and "https" not in found
