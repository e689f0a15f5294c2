# What is done with the units of contrib/systemd, in a container whose systemd has just booted.
# The argument is a loop device that is free. Whatever fails ends it without /check/passed.
set -eux
device=$1
# What the units said, should anything fail.
trap "journalctl --no-pager --lines 80 --unit \"lockstep*\"" EXIT
export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin

# Polls until a command succeeds.
until_true() {
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    echo "waited 30 s for: $*"
    return 1
}
serves() { lockstep status db --json | grep -q '"primary":"alpha"'; }
main_pid() { systemctl show --property MainPID --value "$1"; }

# There is no network but loopback to wait for.
systemctl mask --runtime systemd-networkd-wait-online.service NetworkManager-wait-online.service \
    ifupdown-wait-online.service networking.service

mkdir -p /etc/lockstep/attach /var/lib/lockstep /srv/db
cat >/etc/lockstep/lockstep.toml <<X
node = "alpha"
data_directory = "/var/lib/lockstep"
control = "127.0.0.1:7788"
replication = "127.0.0.1:7789"
nbd_socket = "nbd.sock"
api_socket = "/run/lockstep/api.sock"
X
lockstep init --config /etc/lockstep/lockstep.toml

# Started means that it answers.
systemctl start lockstep.service
lockstep status
lockstep resource create db --size 64MiB

# A disk, and a file system that is mounted once it is there (a container ignores fstab's devices, of which
# systemd makes such units).
echo "OPTIONS=--fuse $device" >/etc/lockstep/attach/db
cat >/etc/systemd/system/srv-db.mount <<X
[Unit]
Requires=lockstep-attach@db.service
After=lockstep-attach@db.service
[Mount]
What=$device
Where=/srv/db
Type=ext4
X
systemctl daemon-reload
systemctl start lockstep-attach@db.service
mkfs.ext4 -q "$device"
systemctl stop lockstep-attach@db.service
systemctl start srv-db.mount
systemctl is-active lockstep-attach@db.service
echo acknowledged >/srv/db/file
sync -f /srv/db/file

# New certificates, if there were any: the node stays.
before=$(main_pid lockstep.service)
systemctl reload lockstep.service
test "$(main_pid lockstep.service)" = "$before"

# Without the disk no mount; with the mount the disk again.
systemctl stop lockstep-attach@db.service
if systemctl is-active srv-db.mount; then exit 1; fi
systemctl start srv-db.mount
grep acknowledged /srv/db/file
systemctl stop srv-db.mount lockstep-attach@db.service

# A daemon that dies is started again, and the disk is there.
systemctl kill --signal=KILL lockstep.service
restarted() { pid=$(main_pid lockstep.service) && test "$pid" != 0 && test "$pid" != "$before"; }
until_true restarted
until_true serves
systemctl start srv-db.mount
grep acknowledged /srv/db/file

# As at shutdown: what is above goes first.
systemctl stop srv-db.mount lockstep-attach@db.service lockstep.service
test "$(systemctl show --property Result --value lockstep.service)" = success
test "$(systemctl show --property ExecMainStatus --value lockstep.service)" = 0
if systemctl is-failed lockstep.service lockstep-attach@db.service srv-db.mount; then exit 1; fi
touch /check/passed
