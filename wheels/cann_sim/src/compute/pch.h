// Read precompiled by every source of the compute plug-in: parsing these headers is most of its build time.
#include <ATen/ATen.h>
#include <torch/library.h>
