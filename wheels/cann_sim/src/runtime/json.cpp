#include "runtime/json.h"

#include <cstdio>

namespace cann_sim {

std::string quoted(const std::string &text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            result += '\\';
            result += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", c);
            result += escape;
        } else {
            result += c;
        }
    }
    return result + "\"";
}

std::string object(const Fields &fields) {
    std::string text;
    for (const auto &[name, value] : fields) {
        text += (text.empty() ? "{" : ", ") + quoted(name) + ": " + value;
    }
    return text + "}";
}

}  // namespace cann_sim
