"""The site and the README, from the notebooks' stored outputs, without Quarto.

    python tools/docs.py                   build the site in _docs/ and check its internal links
    python tools/docs.py --check           only check the site in _docs/
    python tools/docs.py --readme          write README.md and README_files/ from nbs/index.ipynb
    python tools/docs.py --readme --check  only say whether they are up to date
    python tools/docs.py --stage           write what Quarto reads into _proc/: quarto render _proc
"""
import argparse
import inspect
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import yaml
from bs4 import BeautifulSoup
from fastcore import docments
from fastcore.nbio import read_nb
from nbconvert import MarkdownExporter
from nbdev import serve
from nbdev.config import get_config, nbpath2html
from nbdev.processors import FilterDefaults, exec_show_docs
from nbdev.quarto import refresh_quarto_yml
from nbformat import from_dict
from smalldocs.config import load
from smalldocs.site import Site

ROOT = Path(__file__).resolve().parent.parent
DOCS, README, FIGURES = ROOT / "_docs", ROOT / "README.md", ROOT / "README_files"
HANDLED = ("output-file is not read", "format commonmark is not built", "unknown key format-links")  # Quarto's names for what Pages does


class ShowDocs(exec_show_docs):
    "nbdev's, that also reads the comments beside a dataclass's fields, from the exported module"

    def begin(self):
        super().begin()
        module = next((c.directives_["default_exp"] for c in self.nb.cells if "default_exp" in getattr(c, "directives_", {})), None)
        self.k.user_module.__file__ = str(get_config().lib_path / f"{module}.py")
        docments.get_dataclass_source = dataclass_source


def dataclass_source(cls):
    try: return inspect.getsource(cls)
    except OSError: return ""


class Filter(FilterDefaults):
    def base_procs(self): return [ShowDocs if p is exec_show_docs else p for p in super().base_procs()]


def stage():
    "Notebooks as the site shows them (API entries in, exported source out) -> _proc/"
    refresh_quarto_yml()
    serve.FilterDefaults = Filter
    staged = serve.proc_nbs("nbs", n_workers=0, force=True)  # in this process: torch is imported once
    for nb in staged.rglob("*.ipynb"): nb.write_text(nb.read_text(encoding="utf-8").replace("__main__.", ""), encoding="utf-8")
    return staged


class Pages(Site):
    "smalldocs, with Quarto's `output-file` (00_model.ipynb -> model.html) and links to the site's own address kept inside it"

    def read(self, src):
        page = super().read(src)
        page.out = page.out.with_name(page.front.get("output-file", page.out.name))
        return page

    def find_page(self, target):
        return super().find_page(target) or next((p for p in self.pages.values() if p.out == target), None)

    def resolve(self, href, page, record=True):
        home = get_config().doc_url.rstrip("/") + "/"
        return super().resolve("/" + href.removeprefix(home) if href.startswith(home) else href, page, record)


def build():
    "Stage the notebooks, build _docs/, and return what is wrong with it"
    staged = stage()
    site = Pages(load(staged), quiet=True)
    site.out = DOCS
    site.build()
    for nb in staged.rglob("*.ipynb"):  # the Markdown copies that every module's docstring points to
        page = DOCS / nbpath2html(nb.relative_to(staged))
        text, figures = markdown(read_nb(nb), f"{page.stem}_files", lambda o: f"{nbpath2html(o)}.md" if o.endswith(".ipynb") else o)
        write(page.with_name(page.name + ".md"), text, page.parent, figures)
    return [w for w in site.warnings if not any(h in w for h in HANDLED)] + broken_links()


def broken_links():
    "Links, anchors and images in _docs/ that lead nowhere, those to the site's own address included"
    home = get_config().doc_url.rstrip("/") + "/"
    pages = {p: BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser") for p in sorted(DOCS.rglob("*.html"))}
    if not pages: return ["_docs/ holds no pages; run: make docs"]
    ids = {p: {t["id"] for t in soup.find_all(id=True)} for p, soup in pages.items()}
    bad = []
    for page, soup in pages.items():
        here = urljoin(home, page.relative_to(DOCS).as_posix())
        for link in {t.get("href") or t.get("src") for t in soup.find_all(lambda t: t.get("href") or t.get("src"))}:
            if not urljoin(here, link).startswith(home): continue
            path, anchor = urlsplit(urljoin(here, link).removeprefix(home)).path, unquote(urlsplit(link).fragment)
            target = DOCS / unquote(path)
            if target.is_dir(): target /= "index.html"
            if not target.exists() or (anchor and anchor not in ids.get(target, {anchor})):
                bad.append(f"{page.relative_to(ROOT)}: {link} leads nowhere")
    return sorted(bad)


def markdown(nb, folder, relink):
    "A processed notebook -> its Markdown, and {path: bytes} for its figures, which go into `folder`"
    front, *cells = nb.cells
    front = yaml.safe_load(front.source.strip().strip("-"))
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)", lambda m: relink(m[1]), cell.source)
        cell.metadata = {"transient": {"remove_source": True}} if "#| echo: false" in cell.source else {}
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    fields = {"cell_type", "id", "metadata", "source", "outputs", "execution_count"}
    cells = [{k: v for k, v in cell.items() if k in fields} for cell in cells]
    nb = {**nb, "cells": cells, "metadata": {"language_info": {"name": "python"}}}
    text, found = MarkdownExporter().from_notebook_node(from_dict(nb), resources={"output_files_dir": folder, "unique_key": "figure"})
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.S).replace("![png](", "![figure](")
    text = re.sub(r"(?<=\))\{target=[^}]*\}", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    head = f"# {front['title']}\n" + (f"\n> {front['description']}\n" if "description" in front else "")
    return head + "\n" + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", found["outputs"]


def readme():
    "nbs/index.ipynb -> README.md, with links to the notebooks in this repository"
    nb = read_nb(ROOT / "nbs" / "index.ipynb")
    Filter()(nb)
    return markdown(nb, FIGURES.name, lambda link: os.path.normpath(f"nbs/{link}"))


def write(path, text, folder, figures):
    path.write_text(text, encoding="utf-8")
    for name, data in figures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def stale(text, figures):
    "What in README.md and README_files/ is not what nbs/index.ipynb says"
    have = {f.relative_to(ROOT).as_posix(): f.read_bytes() for f in FIGURES.rglob("*") if f.is_file()}
    bad = [] if README.exists() and README.read_text(encoding="utf-8") == text else ["README.md differs from nbs/index.ipynb"]
    bad += [f"{f} differs from nbs/index.ipynb" for f in sorted({*have, *figures}) if have.get(f) != figures.get(f)]
    return bad + ["run: python tools/docs.py --readme"] if bad else []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("check", "readme", "stage"): parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args()
    os.chdir(ROOT)
    bad = []
    if args.stage: stage()
    elif args.readme:
        text, figures = readme()
        if args.check: bad = stale(text, figures)
        else:
            shutil.rmtree(FIGURES, ignore_errors=True)
            write(README, text, ROOT, figures)
    else:
        bad = broken_links() if args.check else build()
        if not bad: print(f"{len(list(DOCS.rglob('*.html')))} pages in {DOCS.name}/, every internal link holds")
    if bad: sys.exit("\n".join(bad))


if __name__ == "__main__": main()
