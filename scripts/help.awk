# Prints the Makefile's targets that carry a `## text`, under their `##@ section`, in the file's order.
/^##@ / { printf "\n%s\n", substr($0, 5) }
match($0, /^([$][(][A-Z_]+[)]: )?[a-z0-9%-]+:.*## /) {
    name = $0
    sub(/^[$][^:]*: /, "", name)
    sub(/:.*/, "", name)
    printf "  make %-13s %s\n", name, substr($0, RSTART + RLENGTH)
}
