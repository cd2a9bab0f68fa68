"""Domains are data files: each loads, names its licences, and needs no hub by default."""

from __future__ import annotations

import pytest

from minigpt_edge.corpus import HubSource, PackageSource
from minigpt_edge.documents import PACKAGE_READERS
from minigpt_edge.domains import list_domains, load_domain
from minigpt_edge_runtime.errors import UsageError


@pytest.mark.parametrize("name", list_domains())
def test_every_domain_loads_and_works_without_a_hub(name: str) -> None:
    domain = load_domain(name)
    source = domain.source()
    assert isinstance(source, PackageSource)
    assert len(source.sha256) == 64 and source.reader in PACKAGE_READERS and "==" in source.package
    assert all(each.licence for each in domain.sources.values())


def test_law_has_a_hub_source_for_those_who_ask() -> None:
    assert isinstance(load_domain("law").source("hub"), HubSource)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no domain 'lore'") as caught:
        load_domain("lore")
    assert "law" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no source 'web'") as caught:
        load_domain("law").source("web")
    assert "package, hub" in (caught.value.hint or "")
