@_exported import ConvNeXtV2Core  // configuration, images, labels, registry and errors are part of this module
