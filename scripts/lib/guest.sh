# A kernel for virtual machines in tests: Debian's, unpacked and not installed. Sourced, not run.

# guest_kernel DIRECTORY makes DIRECTORY/vmlinuz and DIRECTORY/modules (flat), unless they are there.
guest_kernel() {
    local directory=$1 work package
    [ -f "$directory/vmlinuz" ] && [ -f "$directory/modules/nbd.ko" ] && return 0
    work=$(mktemp -d)
    # The package without a version depends on the newest one that has one.
    package=$(apt-cache depends linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
    if [ -z "$package" ]; then
        apt-get -qq update
        package=$(apt-cache depends linux-image-cloud-amd64 |
            sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
    fi
    echo "fetching ${package:-a kernel} for virtual machines"
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package") &&
        dpkg-deb -x "$work"/*.deb "$work/root" &&
        mkdir -p "$directory/modules" &&
        find "$work/root" -name '*.ko*' -path '*/kernel/*' \
            \( -path '*/virtio/*' -o -path '*/net/*' -o -path '*/block/*' -o -path '*/core/*' \) \
            -exec cp {} "$directory/modules/" \; &&
        { ! ls "$directory"/modules/*.xz >/dev/null 2>&1 || xz -d "$directory"/modules/*.xz; } &&
        cp "$work"/root/boot/vmlinuz-* "$directory/vmlinuz"
    local result=$?
    rm -rf "$work"
    return $result
}
