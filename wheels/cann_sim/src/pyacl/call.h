// Python functions made of functions of the C ABI.
//
// pyACL's functions take positional arguments only, handles and pointers are plain integers, and the status is the last
// element of what they return. None of them gives the interpreter's lock up, except where UNLOCKED is said: as in CANN,
// two threads of Python that execute a model do so one after the other.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime/abi.h"

namespace pyacl {

// A character of PyArg_ParseTuple and the type that it writes, by parameter of C.
template <typename T, typename = void>
struct Argument;
template <typename T>
struct Argument<T *> {
    using type = unsigned long;
    static constexpr char code = 'k';
    static T *value(type number) { return reinterpret_cast<T *>(number); }
};
template <>
struct Argument<const char *> {
    using type = const char *;
    static constexpr char code = 's';
    static const char *value(type text) { return text; }
};
template <typename T>
struct Argument<T, std::enable_if_t<std::is_enum_v<T>>> {
    using type = int;
    static constexpr char code = 'i';
    static T value(type number) { return static_cast<T>(number); }
};
#define PYACL_ARGUMENT(C, PYTHON, CODE)                                \
    template <>                                                        \
    struct Argument<C> {                                               \
        using type = PYTHON;                                           \
        static constexpr char code = CODE;                             \
        static C value(type number) { return static_cast<C>(number); } \
    }
PYACL_ARGUMENT(int8_t, int, 'i');
PYACL_ARGUMENT(int16_t, short, 'h');
PYACL_ARGUMENT(int32_t, int, 'i');
PYACL_ARGUMENT(int64_t, long, 'l');
PYACL_ARGUMENT(uint8_t, unsigned char, 'b');
PYACL_ARGUMENT(uint16_t, unsigned short, 'H');
PYACL_ARGUMENT(uint32_t, unsigned int, 'I');
PYACL_ARGUMENT(uint64_t, unsigned long, 'k');  // size_t too
PYACL_ARGUMENT(float, float, 'f');
#undef PYACL_ARGUMENT

// What C returned, as a Python object.
inline PyObject *object_of(const char *text) { return Py_BuildValue("s", text); }  // None for null
inline PyObject *object_of(const void *pointer) {
    return PyLong_FromUnsignedLong(reinterpret_cast<unsigned long>(pointer));
}
inline PyObject *object_of(PyObject *object) { return object; }
inline PyObject *object_of(float number) { return PyFloat_FromDouble(number); }
template <typename T>
std::enable_if_t<std::is_integral_v<T> || std::is_enum_v<T>, PyObject *> object_of(T number) {
    if constexpr (std::is_enum_v<T> || std::is_signed_v<T>) {
        return PyLong_FromLong(static_cast<long>(number));
    } else {
        return PyLong_FromUnsignedLong(number);
    }
}

// A tuple of objects; takes them over.
template <typename... Values>
PyObject *tuple_of(Values... values) {
    PyObject *const tuple = PyTuple_New(sizeof...(Values));
    Py_ssize_t i = 0;
    (PyTuple_SetItem(tuple, i++, object_of(values)), ...);
    return tuple;
}

// Says which call the arguments do not fit, after the error of PyArg_ParseTuple.
PyObject *refuse_arguments(const char *name);

// Parses `args` into `values` by a format; false with an exception.
template <typename... Types>
bool parse(PyObject *args, const char *name, const char *format, Types *...values) {
    if (PyArg_ParseTuple(args, format, values...) != 0) {
        return true;
    }
    refuse_arguments(name);
    return false;
}

enum Lock { LOCKED, UNLOCKED };

// The Python function of `Function`, whose last `Outputs` … parameters of pointer type are results.
template <auto Function, size_t Outputs, Lock Mode>
class Wrapped;

template <typename Result, typename... Parameters, Result (*Function)(Parameters...), size_t Outputs, Lock Mode>
class Wrapped<Function, Outputs, Mode> {
    static constexpr size_t kInputs = sizeof...(Parameters) - Outputs;
    template <size_t I>
    using Parameter = std::tuple_element_t<I, std::tuple<Parameters...>>;
    template <size_t I>
    using Output = std::remove_pointer_t<Parameter<I>>;

public:
    static inline const char *name;

    static PyObject *call(PyObject *, PyObject *args) {
        return call(args, std::make_index_sequence<kInputs>(), std::make_index_sequence<Outputs>());
    }

private:
    template <size_t... In, size_t... Out>
    static PyObject *call(PyObject *args, std::index_sequence<In...>, std::index_sequence<Out...>) {
        static constexpr char format[] = {Argument<Parameter<In>>::code..., '\0'};
        std::tuple<typename Argument<Parameter<In>>::type...> in{};
        std::tuple<Output<kInputs + Out>...> out{};
        if (!parse(args, name, format, &std::get<In>(in)...)) {
            return nullptr;
        }
        const auto run = [&] {
            return Function(Argument<Parameter<In>>::value(std::get<In>(in))..., &std::get<Out>(out)...);
        };
        if constexpr (std::is_void_v<Result>) {
            run();
            Py_RETURN_NONE;
        } else {
            const Result result = unlocked(run);
            if constexpr (Outputs == 0) {
                return object_of(result);
            } else {
                return tuple_of(std::get<Out>(out)..., result);
            }
        }
    }

    template <typename Run>
    static Result unlocked(Run run) {
        if constexpr (Mode == LOCKED) {
            return run();
        } else {
            PyThreadState *const state = PyEval_SaveThread();
            const Result result = run();
            PyEval_RestoreThread(state);
            return result;
        }
    }
};

// Turns a function whose result is its first parameter, such as aclrtMalloc(void **, …), into one with it last.
template <auto Function>
struct Turned;
template <typename Out, typename... Rest, aclError (*Function)(Out *, Rest...)>
struct Turned<Function> {
    static aclError call(Rest... rest, Out *out) { return Function(out, rest...); }
};

// An entry of a module's table. `name` is the whole one, such as acl.rt.malloc; the last `Outputs` parameters of the C
// function are results, which come before the status.
template <auto Function, size_t Outputs = 0, Lock Mode = LOCKED>
PyMethodDef entry(const char *name, const char *doc) {
    using Python = Wrapped<Function, Outputs, Mode>;
    Python::name = name;
    return {name, Python::call, METH_VARARGS, doc};
}
template <auto Function>
PyMethodDef first_is_result(const char *name, const char *doc) {
    return entry<&Turned<Function>::call, 1>(name, doc);
}

// The tables of the modules; entries that have to build lists, dictionaries or callbacks are written out there.
std::vector<PyMethodDef> top_functions();
std::vector<PyMethodDef> rt_functions();
std::vector<PyMethodDef> mdl_functions();
std::vector<PyMethodDef> util_functions();

// Reads a list of integers; false with an exception. pyACL takes lists only.
bool read_list(PyObject *list, const char *name, std::vector<int64_t> *values);

}  // namespace pyacl
