# Debian packages for the scripts: installs what is missing, and only that. Sourced, not run.

# need_packages COMMAND:PACKAGE... installs the package of every command that is not there.
need_packages() {
    need_those_without "command -v" "$@"
}

# need_library NAME:PACKAGE... the same for libraries, by the names that pkg-config has for them.
need_library() {
    need_those_without "pkg-config --exists" "$@"
}

# need_those_without CHECK THING:PACKAGE...
need_those_without() {
    local check=$1 pair missing=()
    shift
    for pair in "$@"; do
        $check "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        echo "$0: missing packages: ${missing[*]}. Install them, or run this script as root." >&2
        return 1
    fi
    echo "installing ${missing[*]}"
    apt-get -qq update &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
            "${missing[@]}" >/dev/null
}
