// Writes JSON.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace cann_sim {

// A string in its quotes.
std::string quoted(const std::string &text);

// Names, and values that are JSON already.
using Fields = std::vector<std::pair<const char *, std::string>>;

// {"name": value, …} on one line.
std::string object(const Fields &fields);

// {"key": value, …} or [value, …], one entry a line.
template <typename Map, typename Entry>
std::string lines(const Map &map, char open, char close, Entry entry) {
    std::string text(1, open);
    for (const auto &item : map) {
        text += (text.size() == 1 ? "\n    " : ",\n    ") + entry(item);
    }
    return text + (map.empty() ? "" : "\n  ") + close;
}

}  // namespace cann_sim
