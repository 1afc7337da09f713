// Reading a partition of an OM file. Nothing in it is trusted: every length is compared with what is left.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "executor/executor.h"
#include "executor/model.h"

namespace cann_sim::executor {

[[noreturn]] inline void refuse(const std::string &reason) { throw Failure(CANN_SIM_EXECUTOR_BAD_FILE, reason); }

// A place in a partition.
class Cursor {
public:
    Cursor(const unsigned char *data, size_t size) : data_(data), left_(size) {}

    template <typename T>
    T get() {
        T value;
        std::memcpy(&value, take(sizeof(T)), sizeof(T));
        return value;
    }

    // How many elements follow; each has at least `least` bytes, so a count that memory could not hold is refused.
    size_t count(size_t least) {
        const auto number = get<uint32_t>();
        if (number > left_ / least) {
            refuse("a list ends behind its partition");
        }
        return number;
    }

    std::string text() {
        const size_t length = count(1);
        return {reinterpret_cast<const char *>(take(length)), length};
    }

    template <typename T>
    std::vector<T> numbers() {
        std::vector<T> result(count(sizeof(T)));
        for (T &number : result) {
            number = get<T>();
        }
        return result;
    }

    // What `one` reads, as often as the count before it says.
    template <typename One>
    auto list(size_t least, One one) {
        std::vector<decltype(one())> result;
        const size_t length = count(least);
        result.reserve(length);
        for (size_t i = 0; i < length; ++i) {
            result.push_back(one());
        }
        return result;
    }

    std::vector<std::string> texts() {
        return list(4, [this] { return text(); });
    }

private:
    const unsigned char *take(size_t size) {
        if (size > left_) {
            refuse("a partition ends too early");
        }
        const unsigned char *here = data_;
        data_ += size;
        left_ -= size;
        return here;
    }

    const unsigned char *data_;
    size_t left_;
};

}  // namespace cann_sim::executor
