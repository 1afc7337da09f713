// Read precompiled by every source over ATen: parsing these headers is most of the build time.
#include <ATen/ATen.h>
#include <torch/library.h>
