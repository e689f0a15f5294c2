# NBD clients of other implementations that the release of Debian which runs the tests may not have: of
# Debian 13, unpacked and not installed. Sourced, not run.

# The archive that this machine's packages come from.
debian_archive() {
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' |
        sed -n 's/ Debian main$//p' | grep -v -e -security | head -n 1
}

# newer_clients DIRECTORY makes a root directory for chroot with libnbd and QEMU, which know extended
# headers.
newer_clients() {
    local directory=$1 made
    [ -x "$directory/usr/bin/nbdsh" ] && [ -x "$directory/usr/bin/qemu-img" ] && return 0
    made="$directory.new"
    rm -rf "$directory" "$made"
    echo "fetching libnbd and QEMU of Debian 13"
    mmdebstrap --quiet --variant=extract \
        --include=bash,base-files,libnbd-bin,python3-libnbd,qemu-utils \
        trixie "$made" "$(debian_archive)" && mv "$made" "$directory"
}

# nbd_tester DIRECTORY builds the test client of the protocol's reference implementation, and lays the logs
# of requests that its integrity tests repeat beside it.
nbd_tester() {
    local directory=$1 work apt
    [ -x "$directory/nbd-tester-client" ] && return 0
    work=$(mktemp -d)
    apt=(apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::lists="$work/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
        -o APT::Sandbox::User=root)
    echo "deb-src $(debian_archive) trixie main" >"$work/sources.list"
    echo "building the test client of nbd"
    mkdir -p "$work/lists/partial" && "${apt[@]}" update &&
        (cd "$work" && "${apt[@]}" source --download-only nbd) &&
        tar -C "$work" --strip-components=1 -xf "$work"/nbd_*.orig.tar.?z &&
        nbd_tester_config >"$work/config.h" &&
        mkdir -p "$directory" &&
        cp "$work"/tests/run/*.tr "$directory/" &&
        # shellcheck disable=SC2046
        (cd "$work" && cc -w -O1 -I. -o tester tests/run/nbd-tester-client.c cliserv.c buffer.c \
            crypto-gnutls.c $(pkg-config --cflags --libs glib-2.0 gthread-2.0 gnutls) \
            2>"$work/errors" || { cat "$work/errors" && false; }) &&
        mv "$work/tester" "$directory/nbd-tester-client"
    local result=$?
    rm -rf "$work"
    return $result
}

# What the sources' configure script would find out that the test client wants to know.
nbd_tester_config() {
    printf '#define %s\n' 'HAVE_GNUTLS 1' 'HAVE_G_MEMDUP2 1' \
        'SIZEOF_UNSIGNED_SHORT_INT 2' 'SIZEOF_UNSIGNED_INT 4' 'SIZEOF_UNSIGNED_LONG_INT 8' \
        'SIZEOF_UNSIGNED_LONG_LONG_INT 8' 'PACKAGE_NAME "nbd"' 'PACKAGE_VERSION "tests"' \
        'VERSION "tests"'
}
