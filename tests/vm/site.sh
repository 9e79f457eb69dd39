# The ground on which a box of tests/vm stands: mount, network and pid namespaces of its own, and a cgroup.
# Prints the pid of their process 1, and ends when its standard input does, also when whoever held that was killed; with
# it ends every process, mount and namespace in there.  Argument: a name that no other site has.
set -eu
cgroups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$cgroups" ] || { echo "no cgroup2 file system is mounted on this machine" >&2; exit 1; }
mkdir "$cgroups/$1"
tidy() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do # a cgroup can go only when its last process really has
        find "$cgroups/$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$cgroups/$1" ] || return 0
        sleep 0.2
    done
}
trap 'tidy "$1"' EXIT
unshare --mount --net --pid --fork --kill-child --propagation private sh -euc '
    read -r pid rest </proc/self/stat # while /proc still is the one that the caller sees
    mount -t proc proc /proc
    # The /sys of this network namespace, and read-only: so systemd-nspawn waits for no udev to name its interfaces.
    mount -t sysfs -o ro sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs /run
    ip link set lo up
    echo "$pid"
    exec cat
'
