// swift-tools-version: 5.9
import PackageDescription

// ConvNeXtV2 needs libconvnextv2, which CMake builds from native/ and pkg-config finds; ExportedModel needs no library.
// What uses mlx-swift is a package of its own, swift/MLXSwift: SwiftPM fetches what any product needs for all who take
// one. See swift/README.md.
let package = Package(
    name: "ConvNeXtV2",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [
        .library(name: "ConvNeXtV2", targets: ["ConvNeXtV2"]),
        .library(name: "ExportedModel", targets: ["ExportedModel"]),
    ],
    targets: [
        .systemLibrary(name: "CConvNeXtV2", path: "swift/Sources/CConvNeXtV2", pkgConfig: "convnextv2"),
        .target(
            name: "CConvNeXtV2Image",
            path: "native",
            sources: ["src/prepare.cpp", "src/image_c.cpp"],
            publicHeadersPath: "swift",
            cxxSettings: [.headerSearchPath("include"), .headerSearchPath("src")]),
        .target(name: "PixelImages", path: "swift/Sources/PixelImages"),
        .target(name: "ConvNeXtV2", dependencies: ["CConvNeXtV2", "PixelImages"], path: "swift/Sources/ConvNeXtV2"),
        .target(
            name: "ExportedModel", dependencies: ["CConvNeXtV2Image", "PixelImages"],
            path: "swift/Sources/ExportedModel"),
        .executableTarget(name: "classify", dependencies: ["ConvNeXtV2"], path: "swift/Sources/classify"),
        .testTarget(name: "ConvNeXtV2Tests", dependencies: ["ConvNeXtV2"], path: "swift/Tests/ConvNeXtV2Tests"),
        .testTarget(
            name: "ExportedModelTests", dependencies: ["ExportedModel"], path: "swift/Tests/ExportedModelTests"),
    ],
    cxxLanguageStandard: .cxx20
)

#if os(macOS)
package.targets.append(
    .executableTarget(name: "ClassifierApp", dependencies: ["ConvNeXtV2"], path: "swift/Sources/ClassifierApp"))
#endif
