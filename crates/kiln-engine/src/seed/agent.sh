#cloud-boothook
#!/bin/sh
# Installs the agent of kiln from the disk that this comes from, starts it, and has it started at every boot.
# It is run at every boot, early; what is there already stays as it is.
set -u
agent=/usr/local/bin/kiln-agent
service=kiln-agent
from=/run/kiln-seed

fail() {
    echo "kiln-agent: $*" >&2
    exit 1
}

# Makes a file a copy of another with a mode; true where that changed it.
place() {
    if [ -e "$1" ] && cmp -s "$2" "$1"; then return 1; fi
    mkdir -p "${1%/*}" && cp "$2" "$1.new" && chown 0:0 "$1.new" && chmod "$3" "$1.new" && mv -f "$1.new" "$1" ||
        fail "cannot write $1"
    if command -v restorecon >/dev/null 2>&1; then restorecon "$1"; fi
}

disk=
for name in /dev/disk/by-label/cidata "$(blkid -L cidata 2>/dev/null)" "$(findfs LABEL=cidata 2>/dev/null)"; do
    if [ -b "$name" ]; then
        disk=$name
        break
    fi
done
[ -n "$disk" ] || fail "there is no disk with the label cidata"
mkdir -p "$from" && mount -t iso9660 -o ro "$disk" "$from" || fail "cannot mount $disk"
trap 'umount "$from" && rmdir "$from"' EXIT
modprobe virtio_console 2>/dev/null

changed=
place "$agent" "$from/kiln-agent" 0755 && changed=yes
if [ -d /run/systemd/system ]; then
    if place /etc/systemd/system/$service.service "$from/kiln-agent.service" 0644; then
        changed=yes
        systemctl daemon-reload
        systemctl enable $service
    fi
    # Not waited for: this may itself be a part of what systemd starts first.
    if [ -n "$changed" ]; then systemctl --no-block restart $service; else systemctl --no-block start $service; fi
elif command -v openrc-run >/dev/null 2>&1; then
    if place /etc/init.d/$service "$from/kiln-agent.openrc" 0755; then
        changed=yes
        rc-update add $service default
    fi
    if [ -n "$changed" ]; then rc-service $service stop; fi
    # Without what it would wait for: this may itself be a part of it.
    rc-service --nodeps $service start
else
    setsid "$agent" serve --port </dev/null >/dev/null 2>&1 &
fi
