#!/usr/bin/env python3
"""Gather the demo's photographs, and break a few files, in a folder.

The photographs come out of Debian and Python packages, which are fetched but not installed.
Every one is named below with its author and licence; ATTRIBUTION.md beside them says the same.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib

import wheels

# Package, folder in it, and (file, author, licence) as the package's own copyright file states them.
DEBIAN = [
    (
        "mate-backgrounds",
        "usr/share/backgrounds/mate/nature",
        [
            ("Aqua.jpg", "Charles Barbin", "GPL-2+"),
            ("Blinds.jpg", "Lennart Poettering, Andrea Cimitan", "GPL-2+"),
            ("Dune.jpg", "Marco Cogoni, Hylke Bons", "GPL-2+"),
            ("FreshFlower.jpg", "Jens Ansorg", "GPL-2+"),
            ("Garden.jpg", "Charles Barbin", "GPL-2+"),
            ("GreenMeadow.jpg", "Timothy Schellhase, Lapo Calamandrei", "GPL-2+"),
            ("LadyBird.jpg", "Charles Barbin", "GPL-2+"),
            ("RainDrops.jpg", "blackcombwhistler07", "GPL-2+"),
            ("Storm.jpg", "Sergey Nazarov", "GPL-2+"),
            ("TwoWings.jpg", "Charles Barbin, Hylke Bons", "GPL-2+"),
            ("Wood.jpg", "Jean-François Fortin Tam", "GPL-2+"),
            ("YellowFlower.jpg", "Charles Barbin", "GPL-2+"),
        ],
    ),
    (
        "lomiri-wallpapers-16.04",
        "usr/share/backgrounds",
        [
            ("Bridge_by_Sander_Klootwijk.jpg", "Sander Klootwijk", "CC-BY-SA-4.0"),
            ("Dragonfly_by_Bolly.jpg", "Bolly", "CC-BY-SA-4.0"),
            ("Picture_0B_by_freespace.jpg", "Trevor (Freespace)", "CC-BY-4.0"),
            ("Picture_1A_by_freespace.jpg", "Trevor (Freespace)", "CC-BY-4.0"),
            ("Wine_by_Jakkub_Mede.jpg", "Jakub Mede", "CC-BY-4.0"),
            ("aitzgorri_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
            ("free_by_Peter_Nerlich.jpg", "Peter Nerlich", "CC-BY-SA-4.0"),
            ("friends_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
            ("greentock_by_Peter_Nerlich.jpg", "Peter Nerlich", "CC-BY-SA-4.0"),
            ("life_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
            ("picosdeeuropa_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
            ("seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt", "CC0-1.0"),
            ("sunset_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
        ],
    ),
]
SCIKIT_IMAGE = ("scikit-image==0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af")
SCIKIT_IMAGE_PHOTOS = [
    ("astronaut.png", "NASA", "public domain"),
    ("brick.png", "CC0Textures", "CC0-1.0"),
    ("camera.png", "Lav Varshney", "CC0-1.0"),
    ("chelsea.png", "Stefan van der Walt", "CC0-1.0"),
    ("coffee.png", "Rachel Michetti, Pikolo Espresso Bar", "CC0-1.0"),
    ("grass.png", "linolafett", "CC0-1.0"),
    ("gravel.png", "CC0Textures", "CC0-1.0"),
    ("hubble_deep_field.jpg", "NASA", "public domain"),
    ("rocket.jpg", "SpaceX", "public domain"),
]


def from_debian(package, folder, photos, scratch, target):
    """Copy `photos` out of a Debian package; returns those that it held."""
    place = scratch / package
    place.mkdir()
    # As root apt would otherwise change to a user who can't write here, and say so at length.
    command = ["apt-get", "download", "--quiet", "--quiet", "-o", f"APT::Sandbox::User={os.environ.get('USER') or 'root'}", package]
    fetched = subprocess.run(command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    archives = list(place.glob("*.deb"))
    if fetched.returncode != 0 or not archives:
        lines = fetched.stderr.strip().splitlines()
        print(f"photos: apt could not fetch {package} ({lines[0] if lines else 'no reason given'}); going on without it", flush=True)
        return []
    wanted = {f"{folder}/{name}": name for name, *_ in photos}
    found = set()
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archives[0])], stdout=subprocess.PIPE) as unpacking:
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as members:
            for member in members:
                name = wanted.get(member.name.removeprefix("./"))
                if name and member.isfile():
                    wheels.unpack(members.extractfile(member), target / name)
                    found.add(name)
    return [(name, author, licence, f"Debian package {package}") for name, author, licence in photos if name in found]


def from_scikit_image(scratch, target):
    """Copy the photographs that scikit-image ships as sample data."""
    [wheel] = wheels.download("photos", [SCIKIT_IMAGE], scratch / "wheels")
    with zipfile.ZipFile(wheel) as archive:
        for name, *_ in SCIKIT_IMAGE_PHOTOS:
            with archive.open(f"skimage/data/{name}") as source:
                wheels.unpack(source, target / name)
    return [(*photo, f"Python package {SCIKIT_IMAGE[0]}") for photo in SCIKIT_IMAGE_PHOTOS]


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def break_files(folder, photo):
    """Write what a photo bucket holds besides photos; `photo` is a good JPEG to cut short."""
    folder.mkdir()
    whole = photo.read_bytes()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    heic = b"heic\x00\x00\x00\x00mif1heic"
    broken = {
        "cut_short.jpg": whole[: len(whole) * 2 // 5],
        "empty.jpg": b"",
        "error_page.jpg": b"<!DOCTYPE html>\n<html><body><h1>403 Forbidden</h1></body></html>\n",
        "too_many_pixels.png": b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1024))) + png_chunk(b"IEND", b""),
        "from_a_phone.heic": struct.pack(">I", 8 + len(heic)) + b"ftyp" + heic,
    }
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    return sorted(broken)


def attribution(photos, broken):
    lines = ["# Photographs of the demo", "", "| File | Author | Licence | From |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {author} | {licence} | {source} |" for name, author, licence, source in photos]
    lines += ["", f"The files in `broken/` ({', '.join(broken)}) were made by `scripts/photos.py`, which is under this project's licence."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=pathlib.Path, help="folder to gather the photographs in")
    parser.add_argument("--check", action="store_true", help="only say, by the exit code, whether they are all there")
    arguments = parser.parse_args()
    target = arguments.target
    stamp = target / ".complete"
    recipe = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()
    try:
        made_by, *names = stamp.read_text().splitlines()
        if made_by == recipe and all((target / name).is_file() for name in names):
            return
    except (OSError, ValueError):
        pass
    if arguments.check:
        raise SystemExit(1)
    print("photos: fetching 75 MB of packages with freely licensed photographs", flush=True)
    with wheels.replacing(target) as scratch:
        new = scratch / "new"
        photos = []
        if shutil.which("apt-get") and shutil.which("dpkg-deb"):
            for package, folder, listed in DEBIAN:
                photos += from_debian(package, folder, listed, scratch, new)
        else:
            print("photos: no apt on this machine, so there will be fewer; `make demo PHOTOS=DIR` takes your own", flush=True)
        photos += from_scikit_image(scratch, new)
        photos.sort(key=lambda photo: photo[0].lower())
        jpeg = next(new / name for name, *_ in photos if name.endswith(".jpg"))
        broken = break_files(new / "broken", jpeg)
        (new / "ATTRIBUTION.md").write_text(attribution(photos, broken), encoding="utf-8")
        names = [name for name, *_ in photos] + [f"broken/{name}" for name in broken] + ["ATTRIBUTION.md"]
        (new / ".complete").write_text("\n".join([recipe, *names]) + "\n")
    print(f"photos: {len(photos)} photographs and {len(broken)} broken files in {os.path.relpath(target)}", flush=True)


if __name__ == "__main__":
    main()
