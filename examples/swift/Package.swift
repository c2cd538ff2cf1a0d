// swift-tools-version: 5.9
import PackageDescription

// libconvnextv2 is built by CMake from ../cpp and found through pkg-config: see README.md.
let package = Package(
    name: "ConvNeXtV2",
    platforms: [.macOS(.v14)],
    products: [.library(name: "ConvNeXtV2", targets: ["ConvNeXtV2"])],
    targets: [
        .systemLibrary(name: "CConvNeXtV2", pkgConfig: "convnextv2"),
        .target(name: "ConvNeXtV2", dependencies: ["CConvNeXtV2"]),
        .executableTarget(name: "classify", dependencies: ["ConvNeXtV2"]),
        .testTarget(name: "ConvNeXtV2Tests", dependencies: ["ConvNeXtV2"]),
    ]
)

#if os(macOS)
package.targets.append(.executableTarget(name: "ClassifierApp", dependencies: ["ConvNeXtV2"]))
#endif
